"""nbd-gateway disable: an upstream gets no more connections."""

from pathlib import Path


def disable(
    upstream: str,
    /,
    *,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Connect to an upstream no more: who asks for its exports is refused, and its sessions go on.

    :param upstream: Its name in the configuration.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    return do(config, socket, "disable", {"upstream": upstream})
