"""nbd-gateway upgrade: a newer process takes a running gateway's place."""

from pathlib import Path


def upgrade(
    *,
    program: Path | None = None,
    deadline: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Have a newer process take a running gateway's place, without a client being refused.

    It is started with the same command line, and so with what is installed there now, and with the
    configuration as it is now. When all is there that it needs, it accepts clients, at the same sockets; the
    process before goes on with those that it has, and ends when the last has left. If anything is wrong, all
    stays as it was, and this says why.

    :param program: The newer nbd-gateway. Default: what stands where the running one was started from.
    :param deadline: Seconds after which the process before ends its sessions; their clients connect again, to
        the newer one. Default: they stay as long as they like.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    arguments: dict[str, object] = {}
    if program is not None:
        arguments["program"] = str(program.absolute())
    if deadline is not None:
        arguments["deadline"] = deadline
    return do(config, socket, "upgrade", arguments)
