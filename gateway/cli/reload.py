"""nbd-gateway reload: a running gateway takes its configuration up anew."""

from pathlib import Path

from gateway.cli import complain


def reload(path: Path = Path("gateway.toml"), /, *, socket: Path | None = None) -> int:
    """Have a running gateway take up its configuration and TLS credentials anew, and say what has changed.

    All or nothing: if anything is wrong, the gateway goes on as it was. Sessions keep what they were promised.

    :param path: The configuration, whose [control] says where the gateway is spoken to. Default: gateway.toml.
    :param socket: The control socket itself, where the file says something else than when the gateway took
        it up.
    """
    import trio

    from gateway.admin.control import ControlError, ask

    try:
        answer = trio.run(ask, _socket(path) if socket is None else socket, "reload")
    except (ControlError, _NoSocketError) as error:
        complain(str(error))
        return 1
    for problem in answer.problems:
        complain(problem)
    if not answer.ok:
        complain("nothing has changed")
        return 1
    print(f"reloaded: {'; '.join(answer.done)}")
    return 1 if answer.problems else 0


class _NoSocketError(Exception):
    """Where to speak to the gateway is not known; the text says why."""


def _socket(path: Path) -> Path:
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError, load

    try:
        socket = load(path, vocabulary()).control.socket
    except ConfigError as error:
        raise _NoSocketError(
            f"no gateway was asked to reload, for this is wrong:\n{error}"
        ) from None
    if socket is None:
        raise _NoSocketError(
            f'{path} has no [control] with socket = "PATH"; without one, SIGHUP reloads a gateway'
        )
    return socket
