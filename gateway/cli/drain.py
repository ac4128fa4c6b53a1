"""nbd-gateway drain: it takes no more clients."""

from pathlib import Path


def drain(
    listener: str | None = None,
    /,
    *,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Take no more clients; those that are there stay as long as they like.

    :param listener: The URI of a listener, as "nbd-gateway status" has it. Default: all of them.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    return do(config, socket, "drain", {} if listener is None else {"listener": listener})
