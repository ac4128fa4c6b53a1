"""Commands of our own on one link: what is asked, and where the answers are collected.

An `Ask` is a command in the upstream's terms, for which nobody but us waits: a step of a job. Its reply goes to
no client; what it says is gathered in an `Outcome`, which is given to whoever asked when the reply is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gateway.protocol.commands import text_of_error, told_error
from gateway.relay.scan.locks import ASK
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.extents import Extents
from gateway.wire.framing import EXTENDED
from gateway.wire.ranges import Range

if TYPE_CHECKING:
    from gateway.relay.scan.traffic import Traffic

Data = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Ask:
    """A command for the upstream; `data` is that of a WRITE, `flags` are without PAYLOAD_LEN."""

    command: Cmd
    offset: int
    length: int
    flags: int = 0
    data: Data = field(default=b"", repr=False)  # what is on disks has no place in a log
    own: Range | None = None
    """Of a read-modify-write, what its client writes; the rest of it is what was there. None: all is the
    client's."""
    losses: int = 0
    """Over how many links it was asked that have died since: more than none, and it is under suspicion
    (`gateway.relay.bundle.pieces`)."""

    @property
    def written(self) -> Range:
        """What its client writes."""
        return self.own or (self.offset, self.end)

    @property
    def end(self) -> int:
        """The byte behind its range."""
        return self.offset + self.length

    @property
    def data_bytes(self) -> int:
        """How much data goes one way or the other."""
        return self.length if self.command in (Cmd.READ, Cmd.WRITE) else 0

    def part(self, start: int, end: int) -> Ask:
        """Give the same for a part of its range; the data is not copied."""
        data = memoryview(self.data)[start - self.offset : end - self.offset]
        return replace(self, offset=start, length=end - start, data=data, own=None)

    def overlaps(self, other: Ask) -> bool:
        """Say whether both have a byte in their ranges."""
        return self.offset < other.end and other.offset < self.end


@dataclass(slots=True)
class Outcome:
    """What the upstream said to an `Ask`."""

    error: int = 0
    text: str = ""
    offset: int | None = None
    """Where in the export the error is, if that was told."""
    data: bytearray = field(default_factory=bytearray, repr=False)
    """Of a READ."""
    status: dict[int, Extents] = field(default_factory=dict)
    """Of a BLOCK_STATUS: the link's context id -> extents."""


Done = Callable[[Outcome], None]


class Asks:
    """Those that are under way on one link. What they send gathers in `traffic.to_upstream`."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._link = traffic.plan.link
        self._under_way: dict[int, tuple[Ask, Outcome, Done]] = {}
        self._kept: list[tuple[Ask, Done]] = []
        """Those that were not sent, for the server goes: they are asked of the next."""
        self._sent: dict[int, int] = {}
        """Our cookie of a FLUSH -> what `Losses.sent` gave for it."""

    def __len__(self) -> int:
        return len(self._under_way)

    def send(self, ask: Ask, done: Done) -> None:
        """Ask; `done` is called when the reply is complete."""
        traffic = self._traffic
        if traffic.going.begun:
            self._kept.append((ask, done))
            return
        if traffic.memory is not None:
            traffic.memory.look_for_news(traffic.last_cookie)
        ours = traffic.new_cookie()
        word = ask.flags << 16 | ask.command
        traffic.in_flight[ours] = (0, ASK | word, ask.offset, ask.length)
        outcome = Outcome(data=bytearray(ask.length if ask.command is Cmd.READ else 0))
        self._under_way[ours] = ask, outcome, done
        if ask.command is Cmd.FLUSH and traffic.trail is not None:
            self._sent[ours] = traffic.trail.losses.sent()
        flags = ask.flags
        if ask.command is Cmd.WRITE and self._link is EXTENDED:
            flags |= CmdFlag.PAYLOAD_LEN
        traffic.to_upstream.append(
            self._link.encode_request(ask.command, flags, ours, ask.offset, ask.length)
        )
        if ask.data:
            traffic.to_upstream.append(memoryview(ask.data))

    def outcome(self, ours: int) -> Outcome:
        """Give where the reply to an ask is collected."""
        return self._under_way[ours][1]

    def widened(self, ours: int) -> bool:
        """Say whether an ask writes bytes that are not its client's."""
        return self._under_way[ours][0].own is not None

    def settle(self, ours: int) -> None:
        """The reply to an ask is complete."""
        ask, outcome, done = self._under_way.pop(ours)
        memory, trail = self._traffic.memory, self._traffic.trail
        if ask.command is Cmd.FLUSH:
            if memory is not None:
                memory.remember(self._traffic.last_cookie)  # what was answered before
            if trail is not None:
                trail.losses.answered(trail, self._sent.pop(ours), outcome.error, outcome.text)
            outcome.text = outcome.text or text_of_error(outcome.error)
            outcome.error = told_error(outcome.error)
        elif memory is not None:
            word = ask.flags << 16 | ask.command
            if outcome.error:
                memory.failed(ours, word, ask.offset, ask.length)
            else:
                last = self._traffic.last_cookie
                memory.succeeded(ours, word, ask.offset, ask.length, last, ask.own, ask.data)
        done(outcome)

    def drop(self) -> None:
        """Forget them: the link has died, and whoever asked knows."""
        self._under_way.clear()
        self._kept.clear()
        self._sent.clear()

    def take(self) -> list[tuple[Ask, Done]]:
        """Give those that were sent and have no answer, and forget them: they are asked elsewhere."""
        taken = [(ask, done) for ask, _outcome, done in self._under_way.values()]
        self._under_way.clear()
        self._sent.clear()
        return taken

    def take_kept(self) -> list[tuple[Ask, Done]]:
        """The same of those that were not sent."""
        kept, self._kept = self._kept, []
        return kept
