"""nbd-gateway undrain: it takes clients again."""

from pathlib import Path


def undrain(
    listener: str | None = None,
    /,
    *,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Take clients again, after a "drain".

    :param listener: The URI of a listener, as "nbd-gateway status" has it. Default: all of them.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    return do(config, socket, "undrain", {} if listener is None else {"listener": listener})
