"""Two sessions that are told the same by both sides: one has the compiled pump, the other has none. Where a
near end is covered, the pump only scans.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from gateway.hub.lane import BufferPool
from gateway.jobs.locks import ASK
from gateway.losses.records import Ledger
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.memory import Memory
from gateway.scan.plan import Plan, plan
from gateway.scan.traffic import MAX_IN_FLIGHT, Traffic
from gateway.scan.turn import TURN_SECONDS, Turn
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import KIB, MIB
from tests.hub.wires import CountingPool, Wires

SIZE = 8 * MIB
FLAGS = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_TRIM
    | Flag.SEND_FUA
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_CACHE
    | Flag.SEND_DF
    | Flag.CAN_MULTI_CONN
)
DIALECTS = ((False, False), (True, False), (True, True))
"""structured, extended"""
PLAIN = (Cmd.READ, Cmd.READ, Cmd.WRITE, Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM)
WHOLE = (4 * KIB, 4 * KIB, 4 * KIB, 16 * KIB, 20 * KIB, 64 * KIB, 300 * KIB, MIB)
LENGTHS = (1, 512, 4 * KIB, 4 * KIB, 4 * KIB, 16 * KIB, 17 * KIB, 64 * KIB, 300 * KIB, MIB, 2 * MIB)
CUTS = (1, 3, 16, 20, 28, 28, 32, 100, 5000, 70_000, 1 << 22, 1 << 22)
LAST_COOKIES = (0, 1000, 1 << 40)
"""Python has one object for each small number, and counts no references to it."""
SOCKET_BYTES = (0, 4608, 64 * KIB)
"""How much the kernel is asked to hold of what is not taken yet; 0: as much as it does by itself."""

MOST_TRIES = 1000
"""What one has taken the other takes after fewer steps."""

_TAKEN = memoryview(bytearray(1 << 22))
"""Where what is taken lies for a moment. One of that size for each time takes longer than all else, with a
sanitiser."""


@dataclass
class Racer:
    """One of the two, and all that has come out of it."""

    wires: Wires
    to_client: bytearray = field(default_factory=bytearray)
    to_upstream: bytearray = field(default_factory=bytearray)

    def step(self) -> bool:
        went = self.wires.open and self.wires.step()
        if self.wires.open and self.wires.session.ended.is_set():
            self.wires.hang_up()
        return went

    def take(self, most: int) -> bool:
        """Take what has come, as a client and a server that read."""
        went = False
        for far, taken in (
            (self.wires.client, self.to_client),
            (self.wires.upstream, self.to_upstream),
        ):
            with suppress(OSError):
                count = far.recv_into(_TAKEN, most)
                taken += _TAKEN[:count]
                went = went or count > 0
        return went

    def settle(self) -> None:
        while self.step() or self.take(1 << 22):
            pass

    def state(self) -> dict[str, object]:
        """All that one can tell of it."""
        session = self.wires.session
        traffic = session.traffic
        memory, trail = traffic.memory, traffic.trail
        return {
            "to the client": bytes(self.to_client),
            "to the upstream": bytes(self.to_upstream),
            "in flight": dict(traffic.in_flight),
            "last cookie": traffic.last_cookie,
            "half sent": traffic.early.half_sent,
            "held": sorted(traffic.early.held),
            "write left": session._requests.payload_left,
            "read left": session._replies.payload_left,
            "open": (session._replies._open, session._replies._closing),
            # Of a client that has broken the protocol what was right before that may be scanned or not.
            "unscanned": session._client_gone
            or (session._requests_lane.unscanned, session._replies_lane.unscanned),
            "sent": session.bytes_relayed,
            "refused": dict(traffic.refused),
            "asked": (list(traffic.asked), list(traffic.asked_bytes)),
            "errors": dict(traffic.errors),
            "reason": session.reason,
            "sides": session.sides,
            "kept": None if memory is None else memory.kept_bytes,
            "data": None if memory is None else _data(memory),
            "answered": None if memory is None else list(memory.answered),
            "news": None if memory is None else (memory._old, memory._quiet, memory._last_news),
            "unflushed": None if trail is None else trail.unflushed.ranges,
            "wrote": None if trail is None else trail.wrote,
            "out": (len(session._requests_lane.out), len(session._replies_lane.out)),
            "waits for": list(session._interest.values()),
            "buffers": len(self.wires.pool.free),
        }


def _slow_clock() -> Callable[[], float]:
    """Each look at it takes a while, so that turns end, and for both at the same place."""
    ticks = count()
    return lambda: 1.0 + next(ticks) * TURN_SECONDS / 3


def _data(memory: Memory) -> dict[int, bytes]:
    return {
        ours: bytes(kept)
        if isinstance(kept, bytearray)
        else b"".join(bytes(view) for _segment, view in kept)
        for ours, kept in memory.kept.items()
    }


def some_plan(random: Random) -> Plan:
    """Terms of any kind."""
    structured, extended = random.choice(DIALECTS)
    client = random.choice(DIALECTS)
    flags = FLAGS & ~random.choice((Flag(0), Flag(0), Flag.SEND_FUA, Flag.SEND_FLUSH))
    sizes = random.choice((None, BlockSizes(1, 4096, 32 * MIB), BlockSizes(4096, 4096, MIB)))
    export = Export(SIZE, int(flags), sizes, structured=structured, extended=extended)
    view = view_of(export)
    if not random.randrange(4):
        base = random.choice((4096, 512, 1))
        view = replace(view, base=base, size=SIZE // 2)
    return plan(offer(view, structured=client[0], extended=client[1]), export)


def racer(
    plan: Plan,
    room: int = 0,
    pool: BufferPool | None = None,
    *,
    remembers: bool = False,
    covered: Collection[str] = (),
) -> Racer:
    """One that has begun. `remembers`: the WRITEs of its client are kept. `room`: of its sockets, in bytes.
    `covered`: see `Wires`.
    """
    traffic = Traffic(plan)
    if remembers:
        trail = traffic.debt.losses.trail(traffic.debt)
        traffic.debt.losses.came_up(trail)
        traffic.trail = traffic.debt.trail = trail
        traffic.memory = Memory(trail)
    wires = Wires(traffic, pool, covered=covered)
    for sock in wires._near if room else ():
        assert isinstance(sock, socket.socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    traffic.turn = Turn(_slow_clock())
    wires.session.begin()
    return Racer(wires)


class Race:
    """Both, and what they are told next."""

    counts: tuple[int, ...] = (1, 1, 2, 9, 40)
    """How many requests or answers come together."""
    whole: tuple[int, ...] = WHOLE
    """How long a plain command is."""
    lengths: tuple[int, ...] = LENGTHS
    """How long any other is."""

    def __init__(self, random: Random, covered: Collection[str] = ()) -> None:
        self.random = random
        self.covered = covered
        self.odd = random.choice((0.0, 0.0, 0.01, 0.1, 0.5))
        """How much of it is anything but a plain command, or a plain answer."""
        self.wrong = random.choice((0.0, 0.05))
        """How many answers are such as no server may give."""
        self.plan = some_plan(random)
        self.remembers, room = bool(random.randrange(3)), random.choice(SOCKET_BYTES)
        """Its WRITEs are kept: then the link must not be lost, for nobody goes on without it here."""
        pools = random.choice((BufferPool, BufferPool, CountingPool))
        self.racers = [self._racer(room, pools(), remembers=self.remembers) for _ in range(2)]
        self.pumped, self.plain = self.racers
        last, most = (
            random.choice(LAST_COOKIES),
            random.choice((MAX_IN_FLIGHT, MAX_IN_FLIGHT, 5, 3, 1)),
        )
        for racer in self.racers:
            racer.wires.session.traffic.last_cookie = last
            racer.wires.session.traffic.most_in_flight = most
        self.held = False
        self.plain.wires.session._pump_no_more()
        self.from_client = bytearray()
        self.from_upstream = bytearray()
        self.answered: set[int] = set()

    def _racer(self, room: int, pool: BufferPool, *, remembers: bool) -> Racer:
        return racer(self.plan, room, pool, remembers=remembers, covered=self.covered)

    def run(self, actions: Iterable[object]) -> None:
        """Tell both the same, once for each of `actions`. Hold one against the other whenever both are at
        rest.
        """
        try:
            for _ in actions:
                self._act()
                if not self.random.randrange(4):
                    self._compare()
            if self.held:
                self._hold_or_go_on()
            self._compare()
        finally:
            for racer in self.racers:
                racer.wires.close()

    def _act(self) -> None:
        match self.random.randrange(11):
            case 0 | 1 | 2:
                self.from_client += self._ask(self.random.choice(self.counts))
            case 3 | 4 | 5:
                self._answer(self.random.choice(self.counts))
            case 6 | 7:
                for _ in range(self.random.choice((1, 1, 4, 16))):
                    self._send()
                    for racer in self.racers:
                        racer.step()
            case 8:
                for racer in self.racers:
                    racer.step()
            case 9:
                most = self.random.choice((1, 100, 1 << 22))
                for racer in self.racers:
                    racer.take(most)
            case _ if self.odd:
                self._befall()
            case _:
                pass

    def _befall(self) -> None:
        """Have happen to both what is no message."""
        for racer in self.racers:
            racer.settle()
        match self.random.randrange(4):
            case 0 | 1:
                self._hold_or_go_on()
            case 2:
                for losses in self._losses():
                    losses.came_up(losses.trail(losses.open()))
            case _:
                for losses in self._losses():
                    losses.witnesses.over([(0, 4 * KIB)])

    def _hold_or_go_on(self) -> None:
        self.held = not self.held
        for racer in self.racers:
            if racer.wires.open:
                session = racer.wires.session
                session.hold() if self.held else session.go_on()

    def _losses(self) -> list[Ledger]:
        return [racer.wires.session.traffic.debt.losses for racer in self.racers if self.remembers]

    def _ask(self, count: int) -> bytes:
        return b"".join(self._request() for _ in range(count))

    def _send(self, cuts: tuple[int, ...] = CUTS) -> None:
        for waiting, far in ((self.from_client, "client"), (self.from_upstream, "upstream")):
            piece = bytes(waiting[: self.random.choice(cuts)])
            sent = []
            for racer in self.racers:
                try:
                    sent.append(getattr(racer.wires, far).send(piece))
                except BlockingIOError:
                    sent.append(0)
                except OSError:
                    sent.append(len(piece))
            # What one takes less of has to be sent to it later: so both wait for the slower one.
            least = min(sent)
            for each, taken in zip(self.racers, sent, strict=True):
                if taken > least:
                    self._finish(far, piece[least:taken], but=each)
                    least = max(sent)
            del waiting[: max(sent)]

    def _finish(self, far: str, rest: bytes, *, but: Racer) -> None:
        other = next(racer for racer in self.racers if racer is not but)
        for tries in count():
            if not rest:
                return
            assert tries < MOST_TRIES, f"one of both reads {len(rest)} bytes less from the {far}"
            try:
                rest = rest[getattr(other.wires, far).send(rest) :]
            except BlockingIOError:
                other.step()
                other.take(1 << 22)
            except OSError:
                return

    def _is_odd(self) -> bool:
        return self._happens(self.odd)

    def _happens(self, chance: float) -> bool:
        return self.random.random() < chance

    def _request(self) -> bytes:
        random, framing = self.random, self.plan.offer.framing
        command, length, flags = random.choice(PLAIN), random.choice(self.whole), 0
        offset = random.randrange(0, SIZE // 2 - 2 * MIB, 4096)
        if self._is_odd():
            command, length = random.choice(tuple(Cmd)), random.choice(self.lengths)
            length = 0 if command in (Cmd.FLUSH, Cmd.DISC) else length
            edge = max(0, self.plan.offer.size - length)
            offset = random.choice((random.randrange(0, SIZE, 512), edge, edge + 512))
            offset = 0 if command is Cmd.FLUSH else offset
            flags = random.choice((0, 0, CmdFlag.FUA, CmdFlag.DF, CmdFlag.NO_HOLE, 1 << 9))
        if command is Cmd.WRITE and framing.max_length > 2**32:
            flags |= CmdFlag.PAYLOAD_LEN
        cookie = random.choice((random.getrandbits(64), 7))
        header = framing.encode_request(command, int(flags), cookie, offset, length)
        if self._is_odd() and not random.randrange(10):
            header = self._spoilt(header)
        return header + (random.randbytes(length) if command is Cmd.WRITE else b"")

    def _answer(self, count: int) -> None:
        """Have the upstream answer what is under way, as it may, or as it may not."""
        random = self.random
        self.pumped.settle()
        self.plain.settle()
        there = [
            ours for ours in self.plain.wires.session.traffic.in_flight if ours not in self.answered
        ]
        random.shuffle(there)
        for ours in there[:count]:
            self.answered.add(ours)
            _cookie, word, offset, length = self.plain.wires.session.traffic.in_flight[ours]
            reply = self._reply(ours, word & ~ASK, offset, length)
            bad = not self.remembers and self._is_odd() and not random.randrange(10)
            self.from_upstream += self._spoilt(reply) if bad else reply

    def _reply(self, ours: int, word: int, offset: int, length: int) -> bytes:
        random, framing = self.random, self.plan.link
        if self._is_odd():
            error = random.choice((Errno.EIO, Errno.ENOSPC, Errno.ESHUTDOWN))
            return framing.failure(ours, offset, error, "no")
        if word & 0xFFFF != Cmd.READ:
            if framing.chunked and not random.randrange(3):
                return framing.end(ours, offset)
            return framing.success(ours, offset, read=False)
        data = random.randbytes(length)
        if not self.remembers and self._happens(self.wrong):
            ours, where, count = random.choice(
                ((ours ^ 1, offset, length), (ours, offset + 1, length), (ours, offset, length - 1))
            )
            return framing.data_head(ours, where, where, count, done=True) + data[:count]
        if framing.chunked and length > 1 and self._is_odd():
            half = random.randrange(1, length)
            if not random.randrange(3):  # it ends too early
                return framing.data_head(ours, offset, offset, half, done=True) + data[:half]
            return b"".join(
                (
                    framing.data_head(ours, offset, offset, half, done=False),
                    data[:half],
                    framing.data_head(ours, offset, offset + half, length - half, done=True),
                    data[half:],
                )
            )
        return framing.data_head(ours, offset, offset, length, done=True) + data

    def _spoilt(self, message: bytes) -> bytes:
        at = self.random.randrange(min(len(message), 40))
        return (
            message[:at] + bytes([message[at] ^ 1 << self.random.randrange(8)]) + message[at + 1 :]
        )

    def _compare(self) -> None:
        for racer in self.racers:
            racer.settle()
        pumped, plain = (racer.state() for racer in self.racers)
        hold_against(pumped, plain)
        if self._is_odd() and not self.random.randrange(10):
            self._vanish()

    def _vanish(self) -> None:
        far = "client" if self.remembers else self.random.choice(("client", "upstream"))
        half = self.random.randrange(2)
        for racer in self.racers:
            end = getattr(racer.wires, far)
            with suppress(OSError):  # it has gone before
                end.shutdown(socket.SHUT_WR) if half else end.close()


def hold_against(pumped: dict[str, object], plain: dict[str, object]) -> None:
    """Raise `AssertionError` if the pump has come to anything else."""
    for what, expected in plain.items():
        assert pumped[what] == expected, _difference(what, pumped[what], expected)


def _difference(what: str, pumped: object, expected: object) -> str:
    if isinstance(pumped, bytes) and isinstance(expected, bytes):
        at = next(
            (n for n, (a, b) in enumerate(zip(pumped, expected, strict=False)) if a != b),
            len(pumped),
        )
        around = slice(max(0, at - 40), at + 40)
        return (
            f"{what}: {len(pumped)} bytes with the pump, {len(expected)} without, from {at} on:"
            f" {pumped[around].hex()} and {expected[around].hex()}"
        )
    return f"{what}: {pumped!r} with the pump, {expected!r} without"
