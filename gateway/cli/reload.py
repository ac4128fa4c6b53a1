"""nbd-gateway reload: a running gateway takes its configuration up anew."""

from pathlib import Path

from gateway.cli import complain


def reload(path: Path = Path("gateway.toml"), /, *, socket: Path | None = None) -> int:
    """Have a running gateway take up its configuration and TLS credentials anew, and say what has changed.

    All of the configuration or nothing: if anything is wrong there, the gateway goes on as it was. Credentials
    that cannot be used stay as they were, each by itself. Sessions keep what they were promised.

    :param path: The configuration, whose [control] says where the gateway is spoken to. Default: gateway.toml.
    :param socket: The control socket itself, where the file says something else than when the gateway took
        it up.
    """
    from gateway.cli.running import NoAnswer, ask_gateway
    from gateway.wire.handshake import printable

    try:
        answer = ask_gateway(path, socket, "reload", {})
    except NoAnswer as error:
        complain(str(error))
        return 1
    for problem in answer.problems:
        complain(problem)
    done = "; ".join(answer.done)
    if not answer.ok:
        complain(f"the configuration stays as it was; {done}" if done else "nothing has changed")
        return 1
    if answer.problems:
        complain(f"all but that is taken up: {done}")
        return 1
    print(printable(f"reloaded: {done}"))
    return 0
