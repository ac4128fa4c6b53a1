"""Schedules of sessions before one disk, held to what a disk means; for `test_registers` and `tests.fuzz`.

Theory
------

Every byte of a disk is a register. Commands take time: one begins when its client begins to send it, and
ends when the client has the reply; an unanswered one never ends. Two commands are in order if one has ended
before the other begins; otherwise they are concurrent, and the disk may take them in any order. From that
follows, byte by byte, without any knowledge of what the gateway does in between:

- a READ gives what a WRITE wrote that began before the READ ended, unless another WRITE to the byte lies
  wholly between the two;
- the disk's content, when everything is over, is what a READ would be given then;
- what an answered WRITE with FUA wrote, or one that was answered before an answered FLUSH began, is on the
  durable disk, or what was written there no earlier.

A WRITE that has failed, or whose client has gone, may take effect at any time or never: it never ends, so
nothing relies on it. A WRITE_ZEROES is a WRITE of zeros; if FAST_ZERO was refused it never was. A TRIM may zero
any of its bytes, but no READ can rely on that: it is never what lies between.

That is all a lost update needs to be seen: a read-modify-write that writes back what it read too early shows as
a byte whose last WRITE has ended, and another one's value in its place.

Each WRITE fills its range with a value of its own, so that a byte says who wrote it. The disk is small, so
that everybody is in everybody's way: four blocks, which the client does not obey and the upstream insists
on. One random number generator decides everything (framings, what the upstream has, where bytes are cut, which
request is carried out and which reply is sent next, what fails, who dies and when), so a seed is a schedule.

In some of the schedules links die under whatever is under way, and the sessions live on: by way of a bundle to
the same disk, and then over a link of their own again. Nobody may notice.

In half of the schedules the upstream answers a WRITE now and then before it has all of its data. It says yes
only where that can be the truth: to one client, who has nobody to compare with, and not to FUA. What it has
said yes to is carried out before anything that comes later, and when the connection dies, if the data is there.

In half of the others sessions are held now and then, and go on, perhaps over another link to the same disk,
in another framing: nobody may notice.

What is left out, because it is not promised: a server that carries out requests after the gateway has cut the
session (docs/behaviour.md, "Block sizes").
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

from gateway.bundle.pieces import MOST_LOSSES
from gateway.jobs.locks import Kin, RangeLocks
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.throttle import Bucket, Doors, Unit
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.handshake import BlockSizes
from tests.hub.wires import CountingPool, Wires
from tests.scan import peers
from tests.sessions.survivors import Survivor

BLOCK = 16
SIZE = 4 * BLOCK
NEVER = 10**9
MOST_COMMANDS = 60
"""Of one client; three of them have fewer than there are values."""
MOST_UNDER_WAY = 6
PACES = (1, 1, 0.5, 0.1)
"""How likely the gateway is to look in a round: the less, the more comes in one receive."""
PIECES = ((1, 20, 28, 40, 60, 1000), (40, 1000))
"""Bytes that a client sends at a time: the first cut headers, the second mostly payloads."""
IDLE_ROUNDS = 400
"""So often everybody may have nothing to do, by chance, before they wait for each other for ever."""
MOST_ROUNDS = 20_000

NEEDED = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_TRIM
OPTIONAL = (Flag.SEND_FUA, Flag.SEND_WRITE_ZEROES, Flag.SEND_DF, Flag.SEND_FAST_ZERO)
FRAMINGS = {
    # the client's -> the link's: nothing is asked of an upstream that the client did not ask for
    SIMPLE: (SIMPLE,),
    STRUCTURED: (SIMPLE, STRUCTURED),
    EXTENDED: (SIMPLE, STRUCTURED, EXTENDED),
}
COMMANDS = (
    Cmd.READ,
    Cmd.WRITE,
    Cmd.WRITE,
    Cmd.WRITE,
    Cmd.WRITE,
    Cmd.WRITE_ZEROES,
    Cmd.TRIM,
    Cmd.FLUSH,
)


class Broken(AssertionError):
    """A promise was broken."""


# --- What may be read


@dataclass(eq=False)
class Write:
    """Something that fills bytes from `start` up to `end` with `value`."""

    start: int
    end: int
    value: int
    began: int
    ended: int = NEVER
    certain: bool = True
    """Once it has ended, its bytes have its value."""


class History:
    """All writes, and what follows from them."""

    def __init__(self) -> None:
        self.now = 0
        self.writes = [Write(0, SIZE, 0, began=-2, ended=-1)]

    def may_be_read(self, at: int, value: int, began: int, ended: int) -> bool:
        """Say whether a READ that took from `began` to `ended` may be given `value`."""
        return any(
            write.value == value and write.began < ended and not self._superseded(write, at, began)
            for write in self._writes_of(at)
        )

    def check_durable(self, write: Write, durable: bytes | bytearray, why: str) -> None:
        """Check that a write lasts, or what was written over it."""
        for at in range(write.start, write.end):
            lasting = [other.value for other in self._writes_of(at) if other.ended >= write.began]
            if durable[at] not in lasting:
                raise Broken(
                    f"{why}: byte {at} is {durable[at]} on the durable disk, not {lasting}"
                )

    def _superseded(self, write: Write, at: int, before: int) -> bool:
        return any(
            other.certain and write.ended < other.began and other.ended < before
            for other in self._writes_of(at)
        )

    def _writes_of(self, at: int) -> list[Write]:
        return [write for write in self.writes if write.start <= at < write.end]


# --- The disk, and a connection to it


@dataclass
class Disk:
    content: bytearray = field(default_factory=lambda: bytearray(SIZE))
    durable: bytearray = field(default_factory=lambda: bytearray(SIZE))
    """What is left after a power cut."""


@dataclass(eq=False)
class Asked:
    """A request that the upstream has read; `reply` once it was carried out."""

    command: Cmd
    flags: int
    cookie: int
    offset: int
    length: int
    data: bytes
    reply: bytes = b""

    @property
    def range(self) -> slice:
        return slice(self.offset, self.offset + self.length)


@dataclass
class Early:
    """WRITEs are answered before their data has come, now and then."""

    random: Random
    says_yes: bool
    """Not with errors alone."""
    replies: int = 0
    """How many there were."""


class Upstream:
    """One connection of a server that carries out and answers in any order, and obeys in everything else."""

    def __init__(
        self, random: Random, disk: Disk, sock: socket.socket, framing: Framing, longest: int
    ) -> None:
        self._random = random
        self._disk = disk
        self._sock = sock
        self._framing = framing
        self._longest = longest
        self.fails = False
        """Commands fail now and then."""
        self.early: Early | None = None
        # Cookies: of the WRITE that has come in part; of those that were answered then.
        self._in_part = self._said_yes = self._said_no = 0
        self.over = False
        self._received = b""
        self._to_send = b""
        self._asked: list[Asked] = []

    def step(self) -> bool:
        """Do a little of everything; say whether anything was done."""
        if self.over:
            return False
        did = [self._receive(), self._carry_out_one(), self._answer_one(), self._send()]
        return any(did)

    def die(self) -> None:
        """Close; nothing is carried out any more but what was answered, if it is here."""
        while self._said_yes and (data := received(self._sock, 100_000)):
            self._take(data)
        self._sock.close()
        self.over = True

    def _receive(self) -> bool:
        data = received(self._sock, self._random.choice((10, 50, 100_000)))
        if data is None:
            return False
        if not data and not self._asked:
            self.die()
            return True
        self._take(data)
        return bool(data)

    def _take(self, data: bytes) -> None:
        self._received += data
        while asked := self._next_asked():
            if asked.cookie == self._said_yes:
                self._said_yes = 0
                self._carry_out(asked)
            elif asked.cookie != self._said_no and asked.command is not Cmd.DISC:
                self._asked.append(asked)

    def _next_asked(self) -> Asked | None:
        request, received = self._framing.request, self._received
        if len(received) < request.size:
            return None
        magic, word, cookie, offset, length = request.unpack_from(received)
        assert magic == self._framing.request_magic
        command = Cmd(word & 0xFFFF)
        behind = request.size + (length if command is Cmd.WRITE else 0)
        if len(received) < behind:
            if self.early is not None and cookie != self._in_part:
                self._in_part = cookie
                self._perhaps_answer(self.early, word >> 16, cookie, offset)
            return None
        self._received = received[behind:]
        assert not (offset | length) % BLOCK
        assert command not in (Cmd.READ, Cmd.WRITE) or length <= self._longest
        data = received[request.size : behind]
        return Asked(command, word >> 16, cookie, offset, length, data)

    def _perhaps_answer(self, early: Early, flags: int, cookie: int, offset: int) -> None:
        """Answer a WRITE whose data has not all come."""
        if self.fails and early.random.random() < 0.5:
            self._to_send += self._framing.failure(cookie, offset, Errno.EIO)
            self._said_no = cookie
            early.replies += 1
        elif early.says_yes and not flags & CmdFlag.FUA and early.random.random() < 0.8:
            self._to_send += self._framing.success(cookie, offset, read=False)
            self._said_yes = cookie
            early.replies += 1

    def _carry_out_one(self) -> bool:
        waiting = [asked for asked in self._asked if not asked.reply]
        if not waiting or self._random.random() < 0.5:
            return False
        asked = self._random.choice(waiting)
        error = self._error(asked)
        if not error or (error == Errno.EIO and self._random.random() < 0.5):
            self._carry_out(asked)
        if error:
            asked.reply = self._framing.failure(asked.cookie, asked.offset, error)
        elif asked.command is not Cmd.READ:
            asked.reply = self._framing.success(asked.cookie, asked.offset, read=False)
        return True

    def _error(self, asked: Asked) -> int:
        if asked.flags & CmdFlag.FAST_ZERO and self._random.random() < 0.5:
            return Errno.ENOTSUP
        return Errno.EIO if self.fails and self._random.random() < 0.05 else 0

    def _carry_out(self, asked: Asked) -> None:
        content, durable = self._disk.content, self._disk.durable
        match asked.command:
            case Cmd.READ:
                asked.reply = self._content(asked, bytes(content[asked.range]))
            case Cmd.WRITE:
                content[asked.range] = asked.data
            case Cmd.WRITE_ZEROES:
                content[asked.range] = bytes(asked.length)
            case Cmd.TRIM if self._random.random() < 0.5:
                content[asked.range] = bytes(asked.length)
            case Cmd.FLUSH:
                durable[:] = content
        if asked.flags & CmdFlag.FUA:
            durable[asked.range] = content[asked.range]

    def _content(self, asked: Asked, data: bytes) -> bytes:
        framing, cookie, start = self._framing, asked.cookie, asked.offset
        if not framing.chunked:
            return framing.success(cookie, start, read=True) + data
        cut = 0 if asked.flags & CmdFlag.DF else self._random.randint(0, len(data))
        parts = [(a, b) for a, b in ((0, cut), (cut, len(data))) if a < b]
        if self._random.random() < 0.5:
            parts.reverse()
        return b"".join(
            framing.data_head(cookie, start, start + a, b - a, done=(a, b) == parts[-1]) + data[a:b]
            for a, b in parts
        )

    def _answer_one(self) -> bool:
        ready = [asked for asked in self._asked if asked.reply]
        if not ready or self._random.random() < 0.5:
            return False
        asked = self._random.choice(ready)
        self._asked.remove(asked)
        self._to_send += asked.reply
        return True

    def _send(self) -> bool:
        count = sent(self._sock, self._to_send[: self._random.choice((1, 16, 30, 1000))])
        if count is None:  # nobody reads replies any more
            self._to_send = b""
            return False
        self._to_send = self._to_send[count:]
        return bool(count)


# --- A client


@dataclass
class Command:
    """A command under way."""

    request: peers.Request
    began: int
    write: Write | None = None
    """What it writes, if it does."""
    behind: int = 0
    """How much its client has sent when all of it is sent, in bytes."""
    links_lost: int = 0
    """How many links of its client had died when it began."""


class Client:
    """Sends commands that overlap, in pieces, and checks every reply."""

    def __init__(self, world: World, sock: socket.socket, traffic: Traffic) -> None:
        self._world = world
        self._random = world.random
        self._sock = sock
        self._offer = traffic.plan.offer
        self._framing = traffic.plan.offer.framing
        self._reader = peers.Client(
            [], structured=self._framing.chunked, extended=self._framing is EXTENDED
        )
        self._left = self._random.randint(3, MOST_COMMANDS)
        self._most_under_way = self._random.choice((2, 3, MOST_UNDER_WAY))
        self._aligned = self._random.choice((0.2, 0.5, 0.8))
        self._pieces = self._random.choice(PIECES)
        self._in_batches = self._random.random() < 0.5
        self._said_disc = False
        self._sent = 0  # bytes
        self._to_send = b""
        self._received = b""
        self._cookie = 0
        self.may_fail = False
        self.links_lost = 0
        """Errors are to be expected: something dies or fails."""
        self.may_be_cut = False
        """Something dies."""
        self.under_way: dict[int, Command] = {}
        self.over = False

    def step(self) -> bool:
        """Do a little of everything; say whether anything was done."""
        if self.over:
            return False
        did = [self._begin_one(), self._say_disc(), self._send()]
        return any([*did, self._receive()])

    def die(self) -> None:
        """Vanish, with whatever is half sent."""
        self._sock.close()
        self.over = True

    def _begin_one(self) -> bool:
        if not self._left or len(self.under_way) == self._most_under_way:
            return False
        if self._random.random() < 0.5:
            return False
        self._left -= 1
        request = self._some_request()
        now, start, end = self._world.history.now, request.offset, request.offset + request.length
        command = self.under_way[request.cookie] = Command(request, now, links_lost=self.links_lost)
        self._reader.under_way[request.cookie] = request
        match request.command:
            case Cmd.WRITE:
                command.write = Write(start, end, request.data[0], now)
            case Cmd.WRITE_ZEROES:
                command.write = Write(start, end, 0, now)
            case Cmd.TRIM:
                command.write = Write(start, end, 0, now, certain=False)
        if command.write:
            self._world.history.writes.append(command.write)
        self._to_send += request.extended_bytes if self._framing is EXTENDED else request.bytes
        command.behind = self._sent + len(self._to_send)
        return True

    def _some_request(self) -> peers.Request:
        random = self._random
        self._cookie += 1
        command = random.choice(COMMANDS)
        if command is Cmd.FLUSH:
            return peers.Request(command, 0, self._cookie, 0, 0)
        used = self._world.used
        offset = random.randrange(used)
        length = random.randint(1, min(2 * BLOCK + BLOCK // 2, used - offset))
        if random.random() < self._aligned:
            offset -= offset % BLOCK
            length = min(BLOCK * random.randint(1, 3), used - offset)
        data = bytes([self._world.new_value()]) * length if command is Cmd.WRITE else b""
        return peers.Request(command, self._some_flags(command), self._cookie, offset, length, data)

    def _some_flags(self, command: Cmd) -> int:
        flags = 0
        if self._random.random() < 0.3:
            if command is Cmd.READ and self._framing.chunked:
                flags |= CmdFlag.DF
            elif command is not Cmd.READ and self._offer.allows(Flag.SEND_FUA):
                flags |= CmdFlag.FUA
        if command is Cmd.WRITE_ZEROES and self._offer.allows(Flag.SEND_FAST_ZERO):
            flags |= CmdFlag.FAST_ZERO if self._random.random() < 0.3 else 0
        return flags

    def _say_disc(self) -> bool:
        if self._left or self.under_way or self._said_disc:
            return False
        self._to_send += self._framing.encode_request(Cmd.DISC, 0, 0, 0, 0)
        self._said_disc = True
        return True

    def _send(self) -> bool:
        few = len(self.under_way) < self._most_under_way
        if self._random.random() < 0.2 or (self._in_batches and self._left and few):
            return False
        count = sent(self._sock, self._to_send[: self._random.choice(self._pieces)])
        if count is None:
            self.die()
            return True
        self._sent += count
        self._to_send = self._to_send[count:]
        return bool(count)

    def _receive(self) -> bool:
        data = None if self.over else received(self._sock, self._random.choice((10, 100, 100_000)))
        if data is None:
            return False
        if not data:
            self.die()
            return True
        before = len(self._reader.replies)
        self._reader.read(self._received + data)
        self._received = self._reader.cut_off
        for reply in self._reader.replies[before:]:
            self._check(self.under_way.pop(reply.cookie), reply)
        return True

    def _check(self, command: Command, reply: peers.Reply) -> None:
        history, request, write = self._world.history, command.request, command.write
        if self._sent < command.behind and not self.may_be_cut:
            raise Broken(f"{request} was answered before all of it was sent")
        if reply.error == Errno.ENOTSUP and request.flags & CmdFlag.FAST_ZERO and write:
            history.writes.remove(write)
            return
        if reply.error:
            # Over which two links have died, it may be what the server died of. The first may have died a
            # moment before, and the session not have found it.
            suspect = self.links_lost - command.links_lost >= MOST_LOSSES - 1
            if not self.may_fail and not (suspect and reply.error == Errno.EIO):
                raise Broken(f"{request} failed with {reply.error}")
            return
        if request.command == Cmd.READ:
            self._check_read(command, reply.data)
        elif request.command == Cmd.FLUSH:
            self._check_flush(command)
        if write:
            write.ended = history.now
            if write.certain and request.flags & CmdFlag.FUA:
                history.check_durable(write, self._world.disk.durable, f"{request}, with FUA")

    def _check_read(self, command: Command, data: bytes) -> None:
        history = self._world.history
        for at, value in enumerate(data, start=command.request.offset):
            if not history.may_be_read(at, value, command.began, history.now):
                raise Broken(f"{command.request} gave {value} at {at}")

    def _check_flush(self, command: Command) -> None:
        history = self._world.history
        for write in history.writes:
            if write.certain and write.ended < command.began:
                history.check_durable(write, self._world.disk.durable, "FLUSH")


# --- Sockets


def received(sock: socket.socket, most: int) -> bytes | None:
    """What has come: b"" if no more will, None if there is nothing now."""
    try:
        return sock.recv(most)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def sent(sock: socket.socket, data: bytes) -> int | None:
    """How much could be sent; None if the other side has gone."""
    try:
        return sock.send(data) if data else 0
    except BlockingIOError:
        return 0
    except (BrokenPipeError, ConnectionResetError):
        return None


# --- Everything together


class Line:
    """A client, its session, and the session's connection to the disk."""

    def __init__(self, world: World, *, mortal: bool) -> None:
        self._random = random = world.random
        client_framing = random.choice(list(FRAMINGS))
        link = random.choice(FRAMINGS[client_framing])
        longest = random.choice((BLOCK, 2 * BLOCK, 64 * BLOCK))
        export = Export(
            SIZE,
            int(NEEDED) | sum(int(flag) for flag in OPTIONAL if random.random() < 0.6),
            BlockSizes(BLOCK, BLOCK, longest),
            structured=link.chunked,
            extended=link is EXTENDED,
        )
        promised = offer(
            view_of(export), structured=client_framing.chunked, extended=client_framing is EXTENDED
        )
        self._world = world
        self._export, self._promised, self._longest = export, promised, longest
        self.locks = world.some_locks()
        self._holding = world.holding
        self._losing = world.losing
        translated = (random.random() < 0.15 and "all are") or ""
        self.survivor: Survivor | None = None
        if self._losing is not None:
            self._holding = None
            self.survivor = Survivor(
                promised,
                export,
                translated=translated,
                locks=self.locks,
                pool=world.pool,
                doors=world.doors,
            )
            self.wires, self.traffic = self.survivor.wires, self.survivor.traffic
        else:
            self.traffic = Traffic(plan(promised, export, translated=translated), self.locks)
            self.wires = Wires(self.traffic, world.pool, world.doors)
        self._link = link
        self.wires.session.throttle(world.charges())
        self.wires.session.begin()
        self.client = Client(world, self.wires.client, self.traffic)
        self.upstream = self._connected(self.wires.upstream, link)
        self._pace = random.choice(PACES)
        self._mortal = mortal
        self.client.may_fail = mortal or world.fails
        self.client.may_be_cut = mortal

    def _connected(self, sock: socket.socket, link: Framing) -> Upstream:
        upstream = Upstream(self._random, self._world.disk, sock, link, self._longest)
        upstream.fails, upstream.early = self._world.fails, self._world.early
        return upstream

    @property
    def over(self) -> bool:
        return not self.wires.open

    @property
    def actors(self) -> tuple[Callable[[], bool], ...]:
        return (
            self.client.step,
            self.upstream.step,
            self._relay,
            self._perhaps_die,
            self._perhaps_hold,
            self._perhaps_lose_the_link,
        )

    def _relay(self) -> bool:
        if self.over:
            return False
        if self.wires.session.ended.is_set():
            self._hang_up()
            return True
        if self._random.random() > self._pace:
            return False
        return self.wires.step(self._random)

    def _perhaps_die(self) -> bool:
        if not self._mortal or self.over or self._random.random() > 0.015:
            return False
        match self._random.randrange(3):
            case 0 if not self.client.over:
                self.client.die()
            case 1 if not self.upstream.over and self.survivor is None:
                self.upstream.die()
            case 2:
                self.wires.session.cut()
                self._hang_up()
                if not self.upstream.over:
                    self.upstream.die()
        return True

    def _hang_up(self) -> None:
        if self.survivor is None:
            self.wires.hang_up()
        else:
            self.survivor.hang_up()
        if not self.upstream.over:
            self.upstream.die()

    def _perhaps_lose_the_link(self) -> bool:
        """Have the connection die under whatever is under way, or be there again, or go back to fast ways."""
        random, survivor = self._losing, self.survivor
        if random is None or survivor is None or self.over:
            return False
        if survivor.session.ended.is_set():
            return False
        if not self.upstream.over:
            if random.random() < 0.03:
                self.upstream.die()
                self.client.links_lost += 1
                self._world.lost += 1
                return True
            if random.random() < 0.2 and survivor.go_back():
                self._world.returned += 1
                return True
            return survivor.bundle is not None
        if survivor.down and random.random() < 0.2:
            self.upstream = self._connected(survivor.connect(), self._link)
        return True

    def _perhaps_hold(self) -> bool:
        """Be held, or go on, perhaps over another link."""
        session, random = self.wires.session, self._holding
        if random is None or self.over or session.ended.is_set():
            return False
        if not session.held:
            if random.random() < 0.05:
                session.hold()
                self._world.held += 1
            return False
        if random.random() < 0.05:
            session.go_on()
        elif session.quiet and not self.upstream.over and random.random() < 0.2:
            self._relink(random)
        return False

    def _relink(self, random: Random) -> None:
        """Only a link that has nothing to say any more is exchanged: whoever is held begins nothing."""
        assert not self.traffic.in_flight
        link = random.choice(FRAMINGS[self._promised.framing])
        export = replace(self._export, structured=link.chunked, extended=link is EXTENDED)
        made = plan(self._promised, export, translated=(random.random() < 0.15 and "all are") or "")
        traffic = Traffic(made, self.locks)
        self.upstream.die()
        self.wires.relink(traffic)
        self.traffic = traffic
        self.upstream = self._connected(self.wires.upstream, link)
        self._world.relinked += 1

    def check_at_the_end(self) -> None:
        """Nothing is left anywhere, and everything was answered that could be."""
        traffic = self.wires.session.traffic
        jobs = traffic.jobs
        assert not jobs
        assert not traffic.asks
        assert traffic.memory is None or (not traffic.memory.kept and not traffic.memory.kept_bytes)
        assert (jobs.bytes, jobs.waiting) == (0, 0)
        if not self._mortal:
            assert not self.client.under_way
            assert not self.wires.session.reason, self.wires.session.reason


class World:
    """One schedule: a few lines to one disk, as a seed has it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.history = History()
        self.disk = Disk()
        self._naming = Random(f"{seed}, named")  # of its own, see below
        kin = Kin()
        self.locks = [RangeLocks(kin)]
        """Of each name by which the server knows its disk."""
        self.pool = CountingPool()
        self.doors = Doors(lambda: None)
        self.rounds = 0
        # Of its own, so that a schedule is the same with and without.
        self._throttling = Random(f"{seed}, throttled")
        self._buckets = [self._bucket() for _ in range(self._throttling.choice((0, 0, 1, 2)))]
        holding = Random(f"{seed}, held")  # likewise
        self.holding = holding if holding.random() < 0.5 else None
        self.held = self.relinked = 0
        """How often sessions were, in all."""
        losing = Random(f"{seed}, losing")  # likewise
        self.losing = losing if losing.random() < 0.4 else None
        if self.losing is None and self._naming.random() < 0.5:
            # Names keep out of each other's way as long as their links live.
            self.locks.append(RangeLocks(kin))
        self.lost = self.returned = 0
        """How often links died under their sessions, and how often these had links of their own again."""
        self.used = self.random.choice((BLOCK, 2 * BLOCK, SIZE, SIZE))
        """Where everybody writes."""
        self._value = 0
        deadly = self.random.random() < 0.5
        self.fails = self.random.random() < 0.2
        count = self.random.choice((1, 1, 2, 3))
        early = Random(f"{seed}, early")  # likewise
        self.early = Early(early, says_yes=count == 1) if early.random() < 0.5 else None
        self.lines = [
            Line(self, mortal=deadly and self.random.random() < 0.5) for _ in range(count)
        ]

    def some_locks(self) -> RangeLocks:
        """Give those of the name by which a line has opened the disk."""
        return self._naming.choice(self.locks)

    def new_value(self) -> int:
        """Give a value that nobody has written."""
        self._value += 1
        assert self._value < 256
        return self._value

    def _bucket(self) -> Bucket:
        per_round = self._throttling.choice((0.1, 1, BLOCK))
        return Bucket(per_round, self._throttling.choice((1, 4 * BLOCK)), lambda: self.rounds)

    def charges(self) -> list[tuple[Bucket, Unit]]:
        """What a line is charged to; it shares that with others."""
        random = self._throttling
        return [
            (bucket, random.choice(list(Unit))) for bucket in self._buckets if random.random() < 0.8
        ]

    def run(self) -> None:
        """Run until every session has ended; raises if a promise is broken."""
        idle = 0
        for _round in range(MOST_ROUNDS):
            if all(line.over for line in self.lines):
                self._check_at_the_end()
                return
            idle = 0 if self._everybody_once() else idle + 1
            if idle > IDLE_ROUNDS:
                break
        under_way = [line.client.under_way for line in self.lines]
        raise Broken(f"they wait for each other, with {under_way} under way")

    def _everybody_once(self) -> bool:
        did = False
        actors = [actor for line in self.lines for actor in line.actors]
        for actor in self.random.sample(actors, len(actors)):
            self.history.now += 1
            did |= actor()
        self.rounds += 1
        self.doors.open_due(self.rounds)
        return did or self.doors.next_opening() is not None

    def _check_at_the_end(self) -> None:
        for at, value in enumerate(self.disk.content):
            if not self.history.may_be_read(at, value, NEVER, NEVER + 1):
                raise Broken(f"byte {at} of the disk is {value} in the end")
        for locks in self.locks:
            assert not locks.busy
            assert not locks.in_use
            assert not locks._kin.waiting
        assert not self.pool.taken
        assert self.doors.next_opening() is None
        for line in self.lines:
            line.check_at_the_end()

    def close(self) -> None:
        """Close all sockets."""
        for line in self.lines:
            with suppress(Exception):  # it may be broken, and that was told
                (line.survivor or line.wires).close()


def run(seed: int) -> None:
    """Run the schedule of a seed; raises what goes wrong in it."""
    world = World(seed)
    try:
        world.run()
    finally:
        world.close()
