"""Commands of our own on one link: which are under way, and what their replies come to."""

from __future__ import annotations

from typing import Protocol

from gateway.jobs.locks import ASK, Entry
from gateway.losses.rule import Trail
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.commands import text_of_error, told_error
from gateway.scan.going import Going
from gateway.scan.memory import Memory
from gateway.scan.partial import Partial
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.framing import EXTENDED, Framing


class LinkTraffic(Protocol):
    """What asks need of the traffic of a link (`gateway.scan.traffic`)."""

    in_flight: dict[int, Entry]
    partial: dict[int, Partial]
    last_cookie: int
    to_upstream: list[memoryview | bytes]
    going: Going
    memory: Memory | None
    trail: Trail | None

    def new_cookie(self) -> int:
        """Give a cookie that this link has not seen."""
        ...


class Asks:
    """The asks that are under way on one link. What they send gathers in `traffic.to_upstream`."""

    def __init__(self, traffic: LinkTraffic, framing: Framing) -> None:
        """`framing` is that of the link's requests."""
        self._traffic = traffic
        self._framing = framing
        self._under_way: dict[int, tuple[Ask, Outcome, Done]] = {}
        self._kept: list[tuple[Ask, Done]] = []
        """Asks that were not sent because the server goes: they are for the next server."""
        self._sent: dict[int, int] = {}
        """Our cookie of a FLUSH -> what `Losses.sent` gave for it."""

    def __len__(self) -> int:
        return len(self._under_way)

    def let_go(self) -> None:
        """The session has ended: what is asked from now on is not sent."""
        if not self._under_way:
            self._traffic = _LEFT

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
        if ask.command is Cmd.WRITE and self._framing is EXTENDED:
            flags |= CmdFlag.PAYLOAD_LEN
        traffic.to_upstream.append(
            self._framing.encode_request(ask.command, flags, ours, ask.offset, ask.length)
        )
        if ask.data:
            traffic.to_upstream.append(memoryview(ask.data))

    def outcome(self, ours: int) -> Outcome:
        """Give where the reply to an ask is collected."""
        return self._under_way[ours][1]

    def widened(self, ours: int) -> bool:
        """Say whether an ask writes bytes that are not its client's."""
        return self._under_way[ours][0].own is not None

    def settle(self, ours: int, missing: str = "") -> None:
        """The reply to an ask is complete, or has ended without what is `missing`. If a server that goes has
        refused it, that is no reply.
        """
        traffic = self._traffic
        if ours in traffic.going.refused:
            return
        del traffic.in_flight[ours]
        traffic.partial.pop(ours, None)
        ask, outcome, done = self._under_way.pop(ours)
        if missing and not outcome.error:
            outcome.error, outcome.text = Errno.EIO, missing
        memory, trail = traffic.memory, traffic.trail
        if ask.command is Cmd.FLUSH:
            if memory is not None:
                memory.remember(traffic.last_cookie)  # what was answered before
            if trail is not None:
                trail.losses.answered(trail, self._sent.pop(ours), outcome.error, outcome.text)
            outcome.text = outcome.text or text_of_error(outcome.error)
            outcome.error = told_error(outcome.error)
        elif memory is not None:
            word = ask.flags << 16 | ask.command
            if outcome.error:
                memory.failed(ours, word, ask.offset, ask.length)
            else:
                last = traffic.last_cookie
                memory.succeeded(ours, word, ask.offset, ask.length, last, ask.own, ask.data)
        done(outcome)

    def drop(self) -> None:
        """Forget all asks: the link has died, and whoever asked knows."""
        self._under_way.clear()
        self._kept.clear()
        self._sent.clear()

    def take(self) -> list[tuple[Ask, Done]]:
        """Give the asks that were sent and have no answer, and forget them: the caller asks them elsewhere."""
        taken = [(ask, done) for ask, _outcome, done in self._under_way.values()]
        self._under_way.clear()
        self._sent.clear()
        return taken

    def take_kept(self) -> list[tuple[Ask, Done]]:
        """Give the asks that were not sent, and forget them."""
        kept, self._kept = self._kept, []
        return kept


class _Left:
    """What stands in for the traffic of a session that has ended: its server goes, so nothing is sent there."""

    def __init__(self) -> None:
        self.in_flight: dict[int, Entry] = {}
        self.partial: dict[int, Partial] = {}
        self.last_cookie = 0
        self.to_upstream: list[memoryview | bytes] = []
        self.going = Going()
        self.going.begun = True
        self.memory: Memory | None = None
        self.trail: Trail | None = None

    def new_cookie(self) -> int:
        """See `LinkTraffic`."""
        return self.last_cookie


_LEFT = _Left()
