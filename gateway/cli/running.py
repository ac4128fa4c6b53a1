"""Speaking to a gateway that runs, for the verbs that do."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli import complain

if TYPE_CHECKING:
    from gateway.admin.control import Answer


class NoAnswer(Exception):
    """No gateway was asked, or none has answered; the text says why."""


def ask_gateway(
    path: Path, socket: Path | None, verb: str, arguments: Mapping[str, object]
) -> "Answer":
    """Have the gateway of a configuration, or at a control socket, do something. Raises `NoAnswer`."""
    import trio

    from gateway.admin.control import ControlError, ask

    try:
        return trio.run(ask, _socket(path, verb) if socket is None else socket, verb, arguments)
    except ControlError as error:
        raise NoAnswer(str(error)) from None


def do(path: Path, socket: Path | None, verb: str, arguments: Mapping[str, object]) -> int:
    """Have a gateway do something and print what it says; give the exit status."""
    try:
        answer = ask_gateway(path, socket, verb, arguments)
    except NoAnswer as error:
        complain(str(error))
        return 1
    for done in answer.done:
        print(done)
    for problem in answer.problems:
        complain(problem)
    return 0 if answer.ok else 1


def _socket(path: Path, verb: str) -> Path:
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError, load

    try:
        socket = load(path, vocabulary()).control.socket
    except ConfigError as error:
        raise NoAnswer(f"no gateway was asked to {verb}, for this is wrong:\n{error}") from None
    if socket is None:
        instead = "; without one, SIGHUP reloads a gateway" if verb == "reload" else ""
        raise NoAnswer(f'{path} has no [control] with socket = "PATH"{instead}')
    return socket
