"""Speaking to a gateway that runs, for the verbs that do."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli import INTERRUPTED, UsageError, complain, write_no_more
from gateway.cli.asking import export_named

if TYPE_CHECKING:
    from gateway.admin.control import ControlAnswer

SEEN_TO = 3
"""Exit status: it is done, and something has to be seen to."""


class NoAnswer(Exception):
    """No gateway was asked, or none has answered; the text says why."""


def ask_gateway(
    path: Path, socket: Path | None, verb: str, arguments: Mapping[str, object]
) -> "ControlAnswer":
    """Have the gateway of a configuration, or at a control socket, do something. Raises `NoAnswer`."""
    import trio

    from gateway.admin.control import ControlError, ask

    try:
        return trio.run(ask, socket or socket_of(path, verb), verb, arguments)
    except ControlError as error:
        raise NoAnswer(str(error)) from None


@asynccontextmanager
async def asking_gateway(
    socket: Path, verb: str, arguments: Mapping[str, object]
) -> "AsyncIterator[ControlAnswer]":
    """Have a gateway do something, and stay connected to it until the block ends. Raises `NoAnswer`."""
    from gateway.admin.control import ControlError, asking

    try:
        async with asking(socket, verb, arguments) as answer:
            yield answer
    except ControlError as error:
        raise NoAnswer(str(error)) from None


def do(path: Path, socket: Path | None, verb: str, arguments: Mapping[str, object]) -> int:
    """Have a gateway do something and print what it says; give the exit status."""
    try:
        answer = ask_gateway(path, socket, verb, arguments)
    except NoAnswer as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain(f"interrupted: the gateway takes back what it has begun of the {verb}")
        return INTERRUPTED
    return said(answer)


def said(answer: "ControlAnswer") -> int:
    """Print what a gateway has answered, in which may be what its servers say; give the exit status."""
    from gateway.wire.handshake import printable

    try:
        for done in answer.done:
            print(printable(done), flush=True)
    except OSError as error:
        write_no_more()
        complain(f"standard output cannot be written: {error.strerror}; but it is done")
        return SEEN_TO
    for problem in answer.problems:
        complain(problem)
    if not answer.ok:
        return 1
    return SEEN_TO if answer.problems else 0


def meant(export: str | None, *, all_: bool, upstream: str | None) -> dict[str, object]:
    """Give the arguments that say which exports are meant. Raises `UsageError`."""
    if (export is None) == (upstream is None):
        raise UsageError("expected the name of an export, or --upstream NAME for all of a server")
    said: dict[str, object] = {"upstream": upstream} if export is None else {"export": export}
    if export is not None:
        export_named(export)
    return {**said, "all": True} if all_ else said


def socket_of(path: Path, verb: str) -> Path:
    """Give the control socket of a configuration. Raises `NoAnswer`."""
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError, load

    try:
        socket = load(path, vocabulary()).control.socket
    except ConfigError as error:
        wrong = "; ".join(map(str, error.problems))
        raise NoAnswer(f"no gateway was asked to {verb}, for this is wrong: {wrong}") from None
    if socket is None:
        instead = "; without one, SIGHUP reloads a gateway" if verb == "reload" else ""
        raise NoAnswer(f'{path} has no [control] with socket = "PATH"{instead}')
    return socket
