"""Which of our functions are passed by what goes through a gateway: it is run, and watched.

`python -m tests.walks` writes into docs/how-it-works.md what is passed now; tests/test_how_it_works.py holds
the page to it. A function counts once, where it was reached first. What is passed only now and then (because
something is made for the first time, or because the machine was slow) is no part of a walk: each walk is gone
several times, and what counts is passed every time.

Of a FLUSH and of the name of an export it is seen, too, which functions are *given* it, be it in another form,
and which of these *give it on*, to others below them. The rest is called meanwhile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FrameType

import structlog
import trio
import trio.testing

from gateway.bundle.pieces import Piece
from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.hub.pump import VARIABLE
from gateway.jobs.jobs import Running
from gateway.losses.records import Flush
from gateway.protocol.asks import Ask
from gateway.wire.constants import Cmd
from gateway.wire.limits import MIB
from tests.embedded.peers import Client
from tests.pages import with_parts
from tests.sessions.gateways import Gateway, gateway_before

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs/how-it-works.md"

TIMES = 3
"""How often a walk is gone, after a first time that does not count."""

NAME = "a-disk"
SHARED = 'connections = "shared"'
CANONICAL = "canonical-names = true"
DENY = f'[[rule]]\nexports = "{NAME}"\ndeny = true'


Function = tuple[str, str]
"""A file, and the name that a function has in it."""


Is = Callable[[str, object], bool]
"""Says whether an argument of that name and value is what goes through, in one of its forms."""


@dataclass(frozen=True)
class Passed:
    """A function: below how many of ours it was called, and whether it was given what goes through."""

    function: Function
    depth: int
    given: bool = False
    gives_on: bool = False


Walk = tuple[Passed, ...]


def counted(walk: Walk) -> tuple[int, int]:
    """How many functions, in how many files."""
    return len(walk), len({each.function[0] for each in walk})


def given(walk: Walk) -> Walk:
    """Those that are given what goes through."""
    return tuple(each for each in walk if each.given)


def giving_on(walk: Walk) -> Walk:
    """Those that give it on: what has to be read to find the way."""
    return tuple(each for each in walk if each.gives_on)


MEASURES = ("counts/", "hub/pace.py", "scan/timing.py")
"""Where it is measured, now and then, how long something takes."""


class Watch:
    """Sees what is passed in the gateway: not in the task that watches, nor in the embedded servers' tasks."""

    def __init__(self, until: str = "", is_it: Is | None = None) -> None:
        self._depths: dict[Function, int] = {}
        self._given: set[Function] = set()
        self._give_on: set[Function] = set()
        self._until = until
        self._is_it = is_it
        self._over = False
        self._us = trio.lowlevel.current_task()

    @property
    def walk(self) -> Walk:
        return tuple(
            Passed(function, depth, function in self._given, function in self._give_on)
            for function, depth in self._depths.items()
        )

    def see(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or self._over or not _is_ours(frame) or not self._is_of_the_gateway():
            return
        above = _ours_above(frame)
        self._depths.setdefault(_named(frame), len(above))
        if self._is_given(frame):
            self._given.add(_named(frame))
            nearest = next((each for each in above if self._is_given(each)), None)
            if nearest is not None:
                self._give_on.add(_named(nearest))
        self._over = _named(frame)[1] == self._until

    def _is_given(self, frame: FrameType) -> bool:
        code, values = frame.f_code, frame.f_locals
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        is_it = self._is_it
        return is_it is not None and any(is_it(name, values.get(name)) for name in names)

    def _is_of_the_gateway(self) -> bool:
        try:
            task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        except RuntimeError:  # between tasks
            return True
        if task is self._us:
            return False
        while task is not None:
            if task.name.startswith("gateway.embedded."):
                return False
            task = task.parent_nursery and task.parent_nursery.parent_task
        return True


def _is_ours(frame: FrameType) -> bool:
    """Say whether it is a function of the gateway's. A lambda is part of the function around it. What only
    measures some of what is passed is on no way.
    """
    code = frame.f_code
    if any(code.co_filename.startswith(f"{TOP}/gateway/{each}") for each in MEASURES):
        return False
    return code.co_filename.startswith(f"{TOP}/gateway/") and not code.co_name.startswith("<")


def _named(frame: FrameType) -> Function:
    file = Path(frame.f_code.co_filename).relative_to(TOP)
    return str(file), frame.f_code.co_qualname.replace("<locals>.", "")


def _ours_above(frame: FrameType) -> list[FrameType]:
    """Those of ours that called it, the nearest first."""
    found, above = [], frame.f_back
    while above is not None:
        if _is_ours(above):
            found.append(above)
        above = above.f_back
    return found


@contextmanager
def watched(walks: list[Walk], until: str = "", is_it: Is | None = None) -> Iterator[None]:
    """Add what is passed meanwhile, up to the function `until`."""
    watch, before = Watch(until, is_it), sys.getprofile()
    sys.setprofile(watch.see)
    try:
        yield
    finally:
        sys.setprofile(before)
    walks.append(watch.walk)


def always(walks: list[Walk]) -> Walk:
    """What was passed each time but the first, as it was the last time."""
    each_time = [{each.function for each in walk} for walk in walks[1:]]
    return tuple(each for each in walks[-1] if all(each.function in seen for seen in each_time))


@asynccontextmanager
async def _gateway(*, upstream: str = "", export: str = "") -> AsyncIterator[Gateway]:
    server = Server({NAME: MemoryDisk(MIB)}, PERSONALITIES["plain"])
    with _nobody_logs():
        async with gateway_before(server, upstream=upstream, export=export) as gateway:
            yield gateway


@contextmanager
def _nobody_logs() -> Iterator[None]:
    """What becomes of a line of the log is no part of a walk, whatever tests before have set up."""
    before = structlog.get_config()
    structlog.reset_defaults()
    try:
        yield
    finally:
        structlog.configure(**before)


@asynccontextmanager
async def _session(*, upstream: str = "") -> AsyncIterator[Client]:
    async with _gateway(upstream=upstream) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.go(NAME)
            yield client


async def _at_rest() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


async def read() -> Walk:
    """A READ, from the client's request until it has the data."""
    walks: list[Walk] = []
    async with _session() as client:
        for _ in range(1 + TIMES):
            with watched(walks):
                assert await client.read(0, 512) == bytes(512)
                await _at_rest()
    return always(walks)


FORMS = {
    "request",  # as it came
    *("cookie", "ours"),  # the client's name for it, and ours
    *("entry", "ask", "job", "running", "task", "piece", "flush"),  # see CONTRIBUTING.md
    *("outcome", "answer", "reply"),  # what came of it
}
"""What the only command that is under way is called where it is given to a function, in all its forms."""


def _is_the_command(name: str, value: object) -> bool:
    if name == "self":
        return isinstance(value, Ask | Piece | Running | Flush)
    return name in FORMS and value is not None


def _is_the_name(_argument: str, value: object) -> bool:
    """It is the name, or what has it."""
    if isinstance(value, bytes | bytearray):
        return NAME.encode() in value
    if isinstance(value, tuple):
        return any(_is_the_name("", each) for each in value)
    return value == NAME or _has_the_name(value)


def _has_the_name(value: object) -> bool:
    if not type(value).__module__.startswith("gateway."):
        return False
    return is_dataclass(value) and any(
        getattr(value, each.name, None) == NAME for each in fields(value)
    )


async def flush() -> Walk:
    """A FLUSH after a WRITE, from the client's request until it has the reply, where clients share a link."""
    walks: list[Walk] = []
    async with _session(upstream=SHARED) as client:
        for _ in range(1 + TIMES):
            assert not await client.error(Cmd.WRITE, data=bytes(512))
            await _at_rest()
            with watched(walks, is_it=_is_the_command):
                assert not await client.error(Cmd.FLUSH)
                await _at_rest()
    return always(walks)


async def denied() -> Walk:
    """A client whom a rule denies what it asks for, from its connection to its end."""
    walks: list[Walk] = []
    async with _gateway(upstream=CANONICAL, export=DENY) as gateway:
        for _ in range(1 + TIMES):
            with watched(walks):
                client = gateway.client()
                async with client.stream:
                    await client.greeting()
                    client.negotiation.go(NAME, ())
                    await client.refused()
                await _at_rest()
    return always(walks)


async def export_name() -> Walk:
    """The name of an export, from the client's GO to ours, to the server."""
    walks: list[Walk] = []
    async with _gateway() as gateway:
        for _ in range(1 + TIMES):
            client = gateway.client()
            async with client.stream:
                await client.structured()
                await _at_rest()
                with watched(walks, until="ClientNegotiation.go", is_it=_is_the_name):
                    client.negotiation.go(NAME, ())
                    await client.answered()
            await _at_rest()
    return always(walks)


WALKS = {"read": read, "flush": flush, "denied": denied, "export name": export_name}


def listed(walk: Walk) -> str:
    """As the page has it: a function stands further right than the one that calls it."""
    least = min(each.depth for each in walk)
    width = max(len(each.function[0]) for each in walk) + 2
    rows = ((*each.function, "  " * (each.depth - least)) for each in walk)
    return "\n".join(f"{file:{width}}{indent}{name}" for file, name, indent in rows)


def said(walk: Walk) -> str:
    """What the page has between the two marks of a walk."""
    numbers = "{} functions in {} files".format(*counted(walk))
    if given(walk):
        numbers += "; {} of them, in {} files, are given it".format(*counted(given(walk)))
        numbers += ", and {}, in {} files, give it on".format(*counted(giving_on(walk)))
    return f"{numbers}.\n\n```text\n{listed(walk)}\n```"


def with_walks(page: str, walks: dict[str, Walk]) -> str:
    """The page with what is passed now."""
    return with_parts(page, "walk", {name: said(walk) for name, walk in walks.items()})


@contextmanager
def without_pump() -> Iterator[None]:
    """Have Python do all: whoever reads the page reads Python."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "0"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


async def all_walks() -> dict[str, Walk]:
    with without_pump():
        return {name: await go() for name, go in WALKS.items()}


if __name__ == "__main__":
    PAGE.write_text(with_walks(PAGE.read_text(), trio.run(all_walks)))
