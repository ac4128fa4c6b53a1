"""What verbs that ask a server have in common: which one, how long it may take, and how failures are told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from gateway.cli import UsageError, complain

if TYPE_CHECKING:
    from gateway.uri import Target

Timeout = Annotated[float | None, Parameter(name="--timeout")]

_Found = TypeVar("_Found")


class TookTooLong(Exception):
    """The time that the user has allowed is over; the text says so."""


def target_of(text: str) -> Target:
    """Give the server that the user asks about. Raises `UsageError`."""
    from gateway.uri import UriError, parse_upstream

    try:
        return parse_upstream(text)
    except UriError as error:
        raise UsageError(str(error)) from None


def export_named(name: str) -> str:
    """Give the name of the export that the user asks about. Raises `UsageError` if it can be none."""
    from gateway.uri import UriError, check_name

    try:
        return check_name(name, name)
    except UriError as error:
        raise UsageError(str(error)) from None


def found_within(seconds: float | None, ask: Callable[[], Awaitable[_Found]]) -> _Found:
    """Ask, for so many seconds at most (None: without a limit). Raises `TookTooLong`, `UsageError`."""
    import trio

    if seconds is not None and not seconds > 0:
        raise UsageError(f"--timeout: expected a number of seconds above 0, got {seconds:g}")
    return trio.run(partial(_within, seconds, ask))


async def _within(seconds: float | None, ask: Callable[[], Awaitable[_Found]]) -> _Found:
    import trio

    with trio.move_on_after(float("inf") if seconds is None else seconds):
        return await ask()
    raise TookTooLong(f"it was not done within {seconds:g} s, which --timeout allows")


def failed(target: Target, error: Exception, *, as_json: bool) -> int:
    """Say to people or to programs why a server could not be asked; give the exit status."""
    text = f"{target}: {error}" if isinstance(error, TookTooLong) else str(error)
    if as_json:
        import json

        print(json.dumps({"uri": str(target), "error": text}, indent=2))
    else:
        complain(text)
    return 1
