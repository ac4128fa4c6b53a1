"""What an example of a check is made of: a message that the compiled pump takes, and the same with one thing
wrong. And what the pump and the scanners ask, read from their source.

A session with the pump and one without are told the same (`races`). Beside what both come to, an example looks
at what the pump said first, and how much it left to Python.
"""

from __future__ import annotations

import ast
import inspect
import re
import socket
import textwrap
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.hub import pump
from gateway.hub.crowd import READ, Crowd
from gateway.hub.session import Session
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.chunks import ChunkReplies
from gateway.scan.plan import Plan, plan
from gateway.scan.replies import SimpleReplies
from gateway.scan.requests import RequestScan
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.framing import EXTENDED, Framing
from gateway.wire.handshake import BlockSizes
from gateway.wire.transmission import CHUNK_AND_OFFSET, EXTENDED_CHUNK_AND_OFFSET
from tests.hub.races import FLAGS, SIZE, Racer, hold_against, racer

SOURCE = Path(pump.__file__).with_name("_pump.c")
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"

MAX_STEPS = 400
"""What a session takes that is at rest some time; some that were brought out of order by hand never are."""

Arrange = Callable[[Racer], object]


def as_it_is(_racer: Racer) -> None:
    """Arrange nothing."""


# --- Terms and messages


def terms(
    client: tuple[bool, bool],
    link: tuple[bool, bool],
    *,
    size: int = SIZE,
    minimum: int = 1,
    base: int = 0,
    **more: Any,
) -> Plan:
    """Both sides as (structured, extended); `more` is `plan`'s."""
    sizes = BlockSizes(minimum, 4096, 32 << 20)
    export = Export(size, int(FLAGS), sizes, structured=link[0], extended=link[1])
    view = view_of(export)
    view = view if not base else view.window(base, size // 2)
    return plan(offer(view, structured=client[0], extended=client[1]), export, **more)


def request(
    its: Plan,
    command: int = Cmd.TRIM,
    offset: int = 8192,
    length: int = 4096,
    *,
    flags: int = 0,
    magic: int = 0,
) -> bytes:
    """Give a request, with its data."""
    framing = its.offer.framing
    if command == Cmd.WRITE and framing is EXTENDED:
        flags |= CmdFlag.PAYLOAD_LEN
    word = flags << 16 | command
    head = framing.request.pack(magic or framing.request_magic, word, 7, offset, length)
    return head + bytes(length if command == Cmd.WRITE else 0)


def data_chunk(
    link: Framing,
    ours: int,
    *,
    word: int = 0x10001,
    offset: int = 8192,
    echo: int = 8192,
    length: int = 4096,
    size: int | None = None,
) -> bytes:
    """Give a chunk with data of a READ; `size`: what it says of its length."""
    size = length + 8 if size is None else size
    if link is EXTENDED:
        head = EXTENDED_CHUNK_AND_OFFSET.pack(0x6E8A278C, word, ours, echo, size, offset)
    else:
        head = CHUNK_AND_OFFSET.pack(0x668E33EF, word, ours, size, offset)
    return head + bytes(length)


# --- What is arranged before


def put(path: str, value: object) -> Arrange:
    """Set something of a session, by hand; each has its own."""

    def arrange(it: Racer) -> None:
        *way, last = path.split(".")
        there: Any = it.wires.session
        for name in way:
            there = getattr(there, name)
        setattr(there, last, copy(value))

    return arrange


def feed(far: str, *pieces: bytes) -> Arrange:
    """One side says something, piece by piece, and it is taken."""

    def arrange(it: Racer) -> None:
        for piece in pieces:
            getattr(it.wires, far).send(piece)
            settle(it)

    return arrange


def in_turn(*all_of_it: Arrange) -> Arrange:
    """One after the other."""

    def arrange(it: Racer) -> None:
        for each in all_of_it:
            each(it)

    return arrange


def settle(it: Racer) -> None:
    """Go on for as long as anything happens."""
    for _ in range(MAX_STEPS):
        if not (it.step() or it.take(1 << 22)):
            break


# --- Examples


@dataclass
class Noting:
    """Notes what a pump says, and how many bytes it has left for Python to scan."""

    within: pump.Pump
    session: Session
    said: list[tuple[int, int]] = field(default_factory=list)

    @property
    def error(self) -> int:
        return self.within.error

    def requests(self) -> int:
        said = self.within.requests()
        self.said.append((said, self.session._requests_lane.unscanned))
        return said

    def replies(self) -> int:
        said = self.within.replies()
        self.said.append((said, self.session._replies_lane.unscanned))
        return said

    def scan_requests(self) -> bool:
        return self.within.scan_requests()

    def scan_replies(self) -> bool:
        return self.within.scan_replies()


def _pair(its: Plan, asked: bytes, *, remembers: bool = False) -> tuple[list[Racer], Noting]:
    """Give one with the pump and one without, whose clients have asked that."""
    both = [racer(its, remembers=remembers) for _ in range(2)]
    pumped, plain = (each.wires.session for each in both)
    assert pumped._pump is not None
    noting = pumped._pump = Noting(pumped._pump, pumped)
    plain._pump = None
    for each in both:
        feed("client", *([asked] if asked else []))(each)
    return both, noting


@dataclass(frozen=True, kw_only=True)
class Example:
    """A message that the pump takes, and one that it does not take."""

    terms: Plan
    good: bytes
    bad: bytes | None = None
    """None: it is the good one, and something else is in the way."""
    asked: bytes = b""
    """What the client has asked before. Then the messages are the upstream's."""
    far: str = ""
    """Whose the messages are, if not so."""
    before: bytes | None = None
    """What comes before the bad one in the same piece, and is taken; None: the good one."""
    usual: Arrange = as_it_is
    """What is arranged before the good one comes."""
    unusual: Arrange = as_it_is
    """The same for the bad one."""
    well: Plan | None = None
    """The terms on which the good one is taken, if they are others."""
    says: int = pump.GO_ON
    """What the pump says of the bad one. NOT_MINE: it has not begun with what came with it, either."""
    left: int | None = None
    """How many bytes it leaves; None: the bad one, from its first byte on."""
    remembers: bool = False
    at_once: bool = False
    """The session is called for these messages before it is called for anything else."""

    @property
    def whose(self) -> str:
        return self.far or ("upstream" if self.asked else "client")

    def check(self) -> None:
        said, left = self._told(self.well or self.terms, self.good, self.usual)
        assert said >= Crowd.CALM, f"the good one was not taken: {said}"
        assert not left, f"of the good one {left} bytes were not taken"
        bad = self.good if self.bad is None else self.bad
        if self.says == pump.NOT_MINE:
            said, _ = self._told(self.terms, bad, self.unusual, unused=True)
            assert said == pump.NOT_MINE
            return
        before = self.good if self.before is None else self.before
        said, left = self._told(self.terms, before + bad, self.unusual)
        assert said == self.says
        assert left == (len(bad) if self.left is None else self.left)

    def _told(
        self, its: Plan, message: bytes, arrange: Arrange, *, unused: bool = False
    ) -> tuple[int, int]:
        """Tell both, and hold them against each other; give what the pump said first, and had left."""
        both, noting = _pair(its, self.asked, remembers=self.remembers)
        pumped, plain = both
        try:
            for each in both:
                arrange(each)
            noting.said.clear()
            for each in both:
                with suppress(OSError):  # it may have gone
                    getattr(each.wires, self.whose).send(message)
            if unused:
                self._hold_it_does_nothing(pumped, noting)
            bugs = [self._go_on(each) for each in both]
            assert bugs[0] == bugs[1]
            hold_against(pumped.state(), plain.state())
        finally:
            for each in both:
                each.wires.close()
        return noting.said[0]

    def _hold_it_does_nothing(self, pumped: Racer, noting: Noting) -> None:
        near = pumped.wires._near[self.whose == "upstream"]
        assert isinstance(near, socket.socket)
        before = _waiting(near), pumped.state()
        (noting.requests if self.whose == "client" else noting.replies)()
        assert (_waiting(near), pumped.state()) == before

    def _go_on(self, it: Racer) -> str:
        """Go on until both are at rest; give the bug that ended it, if any did."""
        session = it.wires.session
        if self.at_once:
            (session.client_ready if self.whose == "client" else session.link_ready)(READ)
        try:
            settle(it)
        except Exception as bug:
            return repr(bug)
        return ""


def _waiting(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 22, socket.MSG_PEEK)
    except OSError:
        return b""


@dataclass(frozen=True)
class Cut:
    """Messages that are cut at any byte: what is whole is taken, and the rest waits."""

    terms: Plan
    message: bytes
    asked: bytes = b""
    """As in an `Example`."""
    says: int = Crowd.NONE

    def check(self) -> None:
        far = "upstream" if self.asked else "client"
        for cut in range(1, len(self.message)):
            both, noting = _pair(self.terms, self.asked)
            noting.said.clear()
            for piece in (self.message[:cut], self.message[cut:]):
                for each in both:
                    feed(far, piece)(each)
                hold_against(*(each.state() for each in both))
            assert noting.said[0][0] != pump.NOT_MINE
            for each in both:
                each.wires.close()


# --- What stands on the page, and in the source


def rows() -> dict[str, tuple[str, str]]:
    """Give the rows of the tables on the page: a check, where Python makes it, and what the pump does."""
    [section] = re.findall(r"(?ms)^## What the pump checks\n(.*?)^## ", PAGE.read_text())
    tables = re.findall(r"(?m)(?:^\|.*\n)+", section)
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for table in tables
        for line in table.splitlines()[2:]
    ]
    assert len({row[0] for row in cells}) == len(cells), "a row stands there twice"
    return {check: (where, what) for check, where, what in cells}


_SAID_0 = r"if \(([^{}]*?)\) \{\s*(?:forget\(&command\);\s*)?said = 0;"
_UNKNOWN = r"if \((said <= 0)\) \{\s*break;"
_WHOLE = r"while \(([^{}]*)\) \{"
_NOT_MINE = r"if \(([^{}]*?)\) \{\s*return PyLong_FromLong\(NOT_MINE\);"
_LOOKS = {
    "is_usual": (r"return (value\(.*?);",),
    "is_usual_scan": (r"if \(([^{}]*?)\) \{\s*return false;", r"return (!any_holds.*?);"),
    "usual_requests": (r"if \(([^{}]*?)\) \{\s*return 0;",),
    "usual_replies": (r"if \(([^{}]*?)\) \{\s*return 0;",),
    "room": (
        r"if \(([^{}]*?)\) \{\s*return PyErr_Occurred\(\) \? -1 : 0;",
        r"room = (held .*?) \? 0",
    ),
    "prepare": (r"if \(([^{}]*?)\) \{\s*return 0;", r"return (f->end < .*?);"),
    "scan_requests": (_SAID_0, _WHOLE, r"if \((over)\) \{"),
    "resume": (r"if \(([^{}]*?)\) \{\s*return 0;",),
    "scan_simple": (_SAID_0, _UNKNOWN, _WHOLE, r"if \(!good \|\| (over)\) \{"),
    "scan_chunks": (
        _SAID_0,
        _UNKNOWN,
        _WHOLE,
        r"if \(!good \|\| (over)\) \{",
        r"bool is_data = (.*?);",
        r"if \(([^{}]*?)\) \{\s*is_short =",
    ),
    "do_requests": (r"if \((!said \|\| [^{}]*?)\) \{\s*return PyLong_FromLong\(SCANNED\);",),
    "do_replies": (_NOT_MINE,),
    "step": (_NOT_MINE,),
    "scan": (r"if \(([^{}]*?)\) \{\s*return Py_NewRef\(Py_False\);",),
    "scan_lane": (r"if \(([^{}]*?)\) \{\s*return 0;",),
    "add_words": (r"if \(([^{}]*?)\) \{\s*continue;",),
}
"""Where the pump's functions leave it to Python: patterns of what they ask then."""


def asked_in_c() -> set[tuple[str, str]]:
    """Give (function, condition) for all that the pump asks before it goes on by itself."""
    source = SOURCE.read_text()
    found = set()
    for name, patterns in _LOOKS.items():
        [body] = re.findall(rf"(?ms)^static [^\n;]*\b{name}\([^;{{]*\) \{{\n(.*?)^\}}", source)
        for pattern in patterns:
            hits = re.findall(pattern, body, re.DOTALL)
            assert hits, (name, pattern)
            found |= {(name, each) for hit in hits for each in _parts(" ".join(hit.split()))}
    for name in ("is_usual", "is_usual_scan"):
        found.remove((name, "!any_holds(p, none, sizeof none / sizeof *none)"))
        [none] = re.findall(
            rf"(?s)^static bool {name}\(.*?static const int none\[\] = \{{(.*?)\}};", source, re.M
        )
        found |= {(name, each) for each in re.findall(r"\bat_\w+", none)}
    return found


def asked_in_python() -> set[tuple[str, str]]:
    """Give the same of the scanners: (class, condition) for all that `feed` asks."""
    found = set()
    for scanner in (RequestScan, SimpleReplies, ChunkReplies):
        source = textwrap.dedent(inspect.getsource(scanner.feed))
        for node in ast.walk(ast.parse(source)):
            test: ast.expr | None = None
            if isinstance(node, ast.If | ast.While | ast.IfExp):
                test = node.test
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.BoolOp):
                test = node.value
            if test is not None:
                found |= {(scanner.__name__, ast.unparse(each)) for each in _terms_of(test)}
    return found


def _terms_of(test: ast.expr) -> Iterable[ast.expr]:
    if isinstance(test, ast.BoolOp):
        for each in test.values:
            yield from _terms_of(each)
    else:
        yield test


def _parts(condition: str) -> Iterable[str]:
    """Split at what joins conditions, but not inside parentheses."""
    depth, part = 0, ""
    for word in re.findall(r"\|\||&&|[()]|[^()|&]+|[|&]", condition):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if word in ("||", "&&") and not depth:
            yield part.strip()
            part = ""
        else:
            part += word
    yield part.strip()
