"""Speaks to a running gateway, for the verbs that need one."""

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

from gateway.cli import INTERRUPTED, UsageError, complain, write_no_more
from gateway.cli.asking import export_named

if TYPE_CHECKING:
    from gateway.admin.control import ControlAnswer

SEEN_TO = 3
"""Exit status: it is done, but something has to be seen to."""


SILENT_SECONDS = 1
"""After how long we say what is waited for: most is done sooner, and nobody wonders."""


class NoAnswer(Exception):
    """No gateway could be asked, or none has answered; the text says why."""


def ask_gateway(
    path: Path, socket: Path | None, verb: str, arguments: Mapping[str, object]
) -> "ControlAnswer":
    """Have the gateway of a configuration, or at a control socket, do something. Raises `NoAnswer`."""
    import trio

    from gateway.admin.asking import ControlError, ask

    try:
        return trio.run(ask, socket or socket_of(path, verb), verb, arguments)
    except ControlError as error:
        raise NoAnswer(str(error)) from None


@asynccontextmanager
async def asking_gateway(
    socket: Path, verb: str, arguments: Mapping[str, object]
) -> "AsyncIterator[ControlAnswer]":
    """Have a gateway do something, and stay connected to it until the block ends. Raises `NoAnswer`."""
    from gateway.admin.asking import ControlError, asking

    try:
        async with asking(socket, verb, arguments) as answer:
            yield answer
    except ControlError as error:
        raise NoAnswer(str(error)) from None


def do(
    path: Path,
    socket: Path | None,
    verb: str,
    arguments: Mapping[str, object],
    *,
    waits_for: str | None = None,
) -> int:
    """Have a gateway do something and print what it says; give the exit status. `waits_for` says what may take
    its time, for people at a terminal.
    """
    try:
        with _telling(waits_for, arguments):
            answer = ask_gateway(path, socket, verb, arguments)
    except NoAnswer as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain(f"interrupted: the gateway takes back what it has begun of the {verb}")
        return INTERRUPTED
    return said(answer)


@contextmanager
def _telling(waits_for: str | None, arguments: Mapping[str, object]) -> Iterator[None]:
    """Say at a terminal what is waited for, and for how long, if there is no answer soon. The gateway itself
    says nothing before its answer.
    """
    if waits_for is None or sys.stderr is None or not sys.stderr.isatty():
        yield
        return

    def tell() -> None:
        from gateway.sessions.pausing import COMMAND_SECONDS

        complain(f"{waits_for}; within {arguments.get('within', COMMAND_SECONDS):g} s (--within)")

    timer = Timer(SILENT_SECONDS, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def said(answer: "ControlAnswer") -> int:
    """Print what a gateway has answered; give the exit status. Words of its servers may be in the answer."""
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
        which = "" if path.exists() else "; --config says which it is, or --socket where to ask"
        raise NoAnswer(f"no gateway was asked, for this is wrong: {wrong}{which}") from None
    if socket is None:
        instead = "; without one, SIGHUP reloads a gateway" if verb == "reload" else ""
        raise NoAnswer(f'{path} has no [control] with socket = "PATH"{instead}')
    return socket
