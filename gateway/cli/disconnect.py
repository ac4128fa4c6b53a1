"""nbd-gateway disconnect: one session of a running gateway is ended."""

from pathlib import Path


def disconnect(
    session: str,
    /,
    *,
    reason: str | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """End a session in good order: what is under way is answered within 5 seconds, and nothing more is begun.

    Its client may connect again at once; a rule, or a drained listener, keeps it away.

    :param session: Its id, as the log and "nbd-gateway sessions" have it.
    :param reason: Why, for the log.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    arguments: dict[str, object] = {"session": session}
    if reason is not None:
        arguments["reason"] = reason
    return do(config, socket, "disconnect", arguments)
