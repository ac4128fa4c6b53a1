"""nbd-gateway resume: the sessions of a paused export go on."""

from pathlib import Path


def resume(
    export: str, /, *, config: Path = Path("gateway.toml"), socket: Path | None = None
) -> int:
    """Have the sessions of a paused export go on; over new connections where the server was restarted.

    :param export: The export's name in the configuration.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    return do(config, socket, "resume", {"export": export})
