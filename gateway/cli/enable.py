"""nbd-gateway enable: an upstream gets connections again."""

from pathlib import Path


def enable(
    upstream: str,
    /,
    *,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Connect to an upstream again, after a "disable".

    :param upstream: Its name in the configuration.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    return do(config, socket, "enable", {"upstream": upstream})
