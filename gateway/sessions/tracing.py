"""Traces: who runs the gateway looks on while the sessions of one export talk.

As long as a trace runs, the sessions that it is of have a tap (`gateway.hub.tapped`), from which decoders
(`gateway.trace`) take what is said on both sides. What they have seen waits for whoever asked, within a bound.
No session waits for that: what finds no room is dropped, and counted. When the trace ends, for whatever
reason, the taps are gone.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial

import trio

from gateway.identity import Identity
from gateway.links.trunk import Trunk
from gateway.sessions.taps import SessionTap, Traced, TrunkTap
from gateway.trace.backlog import MAX_WAITING_BYTES, Backlog
from gateway.trace.message import Message
from gateway.trace.words import in_words
from gateway.wire.limits import KIB

MAX_TRACES = 8
"""Traces at a time. Each may have `MAX_WAITING_BYTES` waiting."""

AT_ONCE_BYTES = 64 * KIB
"""What is put in words, and sent, before it is others' turn."""

LAST_SECONDS = 10
"""How long whoever asked may take, when the trace is over, to take what still waits."""

Send = Callable[[bytes], Awaitable[None]]


class NotTraced(Exception):
    """There is no trace; the text says why."""


class Traces:
    """The traces that run."""

    def __init__(self) -> None:
        self._running: dict[str, Trace] = {}

    def begin(
        self,
        export: str,
        running: Iterable[Traced],
        failed: Callable[[BaseException], None],
        *,
        who: str | None = None,
        payloads: int = 0,
        raw: bool = False,
        most_bytes: int = MAX_WAITING_BYTES,
    ) -> Trace:
        """Trace an export, of which these sessions are there already. Raises `NotTraced`."""
        if export in self._running:
            raise NotTraced("it is traced already, and one trace at a time sees all of it")
        if len(self._running) >= MAX_TRACES:
            raise NotTraced(f"{MAX_TRACES} traces run, come again")
        over = partial(self._running.pop, export, None)
        trace = Trace(who, failed, over, payloads=payloads, raw=raw, backlog=Backlog(most_bytes))
        self._running[export] = trace
        for each in running:
            trace.session_is_there(each)
        return trace

    def session_moves(self, relayed: Traced) -> None:
        """A session has been put on another uplink."""
        trace = self._running.get(relayed.name)
        if trace is not None:
            trace.attempt(partial(trace.session_moves, relayed))

    @contextmanager
    def session(self, relayed: Traced, received: bytes) -> Iterator[None]:
        """A session begins, whose client has sent some bytes already; it is over when the block ends."""
        trace = self._running.get(relayed.name)
        if trace is not None:
            trace.attempt(partial(trace.session_is_there, relayed, received))
        try:
            yield
        finally:
            trace = self._running.get(relayed.name)
            if trace is not None:
                trace.attempt(partial(trace.session_ends, relayed))


class Trace:
    """One trace. It runs from now on until it is stopped."""

    def __init__(
        self,
        who: str | None,
        failed: Callable[[BaseException], None],
        over: Callable[[], object],
        *,
        payloads: int,
        raw: bool,
        backlog: Backlog,
    ) -> None:
        self._who = who
        self.failed = failed
        self._when_over = over
        self.payloads = payloads
        self._raw = raw
        self._backlog = backlog
        self._began = time.monotonic()
        self._began_at = time.time()
        self._taps: dict[Traced, SessionTap] = {}
        self._trunks: dict[Trunk, TrunkTap] = {}
        self._connections = 0
        self._more = trio.Event()
        self._over = False
        self._why = ""

    @property
    def sessions(self) -> int:
        """How many sessions have a tap."""
        return len(self._taps)

    def clock(self) -> float:
        """Give the seconds since it began."""
        return time.monotonic() - self._began

    def new_connection(self) -> int:
        """Give the number of one more connection."""
        self._connections += 1
        return self._connections

    def say(self, message: Message) -> None:
        """A message was seen."""
        self._backlog.put(message)
        self._more.set()

    def _note(self, relayed: Traced, text: str) -> None:
        ours = relayed.membership.session.client.id
        self._backlog.note(_line(time=self.clock(), session=ours, note=text))
        self._more.set()

    def attempt(self, look: Callable[[], None]) -> None:
        """Do what no session may end over, if a bug is in it."""
        try:
            look()
        except Exception as error:
            self.failed(error)

    # --- Sessions

    def session_is_there(self, relayed: Traced, received: bytes | None = None) -> None:
        """Look on at a session, if it is meant. It begins with what was `received`; None: it runs already."""
        client = relayed.membership.session.client.identity
        if self._who is not None and not is_meant(client, self._who):
            return
        how = "begins" if received is not None else "is there"
        self._note(relayed, f"{how}: {client.describe()}, {relayed.opened.offer.framing} framing")
        taps = self._taps[relayed] = SessionTap(self, relayed)
        relayed.relaying.be_tapped(taps.sockets)
        if received:
            taps.client.show_received(received)
        self._look_at_trunks()

    def session_moves(self, relayed: Traced) -> None:
        """A session is on another uplink."""
        if relayed in self._taps:
            self._look_at_trunks()

    def _look_at_trunks(self) -> None:
        """Look on at the links that these sessions share with others."""
        trunks = [each.opened.uplink.trunk for each in self._taps]
        shared = {each for each in trunks if each is not None}
        for trunk in [each for each in self._trunks if each not in shared]:
            self._trunks.pop(trunk).end()
        for trunk in shared:
            if trunk not in self._trunks and not trunk.tapped:
                self._trunks[trunk] = TrunkTap(self, trunk)

    def session_ends(self, relayed: Traced) -> None:
        """A session has ended."""
        taps = self._taps.pop(relayed, None)
        if taps is not None:
            taps.end()
            self._note(relayed, f"ended: {relayed.relaying.reason or 'in good order'}")
            self._look_at_trunks()

    def stop(self, why: str = "") -> None:
        """End the trace: no session has a tap any more. What has been seen still waits. Never raises."""
        if self._over:
            return
        self._over, self._why = True, why
        self._when_over()
        for relayed, taps in self._taps.items():
            relayed.relaying.be_tapped(None)
            taps.end()
        self._taps.clear()
        self._look_at_trunks()
        self._more.set()

    # --- Whoever asked

    async def tell(self, send: Send, seconds: float) -> None:
        """Send line after line of what is seen, for so many seconds. When it is cancelled, the trace ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_after, seconds, nursery.cancel_scope)
                await send(_line(began=self._began_at).encode())
                while True:
                    lines = self._lines()
                    if lines:
                        await send(lines)
                    elif self._over:
                        break
                    else:
                        self._more = trio.Event()
                        await self._more.wait()
                    await trio.lowlevel.checkpoint()
                messages, dropped = self._backlog.messages, self._backlog.dropped
                last = _line(time=self.clock(), end=self._why, messages=messages, dropped=dropped)
                await send(last.encode())
                nursery.cancel_scope.cancel()
        finally:
            self.stop()
            self._backlog.clear()

    async def _end_after(self, seconds: float, telling: trio.CancelScope) -> None:
        await trio.sleep(seconds)
        self.stop(f"{seconds:g} s are over")
        await trio.sleep(LAST_SECONDS)
        telling.cancel()

    def _lines(self) -> bytes:
        """Put some of what waits in words."""
        lines: list[str] = []
        size = 0
        while self._backlog and size < AT_ONCE_BYTES:
            waited = self._backlog.take()
            if isinstance(waited, int):
                line = _line(time=self.clock(), dropped=waited)
            else:
                line = waited if isinstance(waited, str) else self._line_of(waited)
            lines.append(line)
            size += len(line)
        return "".join(lines).encode()

    def _line_of(self, message: Message) -> str:
        direction = message.direction
        said: dict[str, object] = {
            "time": message.seconds,
            "session": direction.session,
            "connection": direction.connection,
            "side": direction.side,
            "sent": direction.from_gateway,
            "text": in_words(message),
        }
        if self._raw:
            raw = base64.b64encode(message.raw).decode()
            said |= {"at": message.at, "length": message.length, "raw": raw}
        return _line(**said)


def is_meant(client: Identity, pattern: str) -> bool:
    """Say whether a pattern means a client: by where it comes from, or by anything that it has proved."""
    said = [client.peer, client.origin, client.describe(), client.psk_user or ""]
    names = [*client.common_names, *client.dns_names, *client.uris, *client.emails]
    return any(fnmatchcase(each, pattern) for each in (*said, *names) if each)


def _line(**said: object) -> str:
    return json.dumps(said, separators=(",", ":")) + "\n"
