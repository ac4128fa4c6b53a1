"""The law of the data plane: for any traffic, FAST, REFRAMED and TRANSLATED mean the same to both peers.

One model of a disk behind an upstream of any dialect, any block sizes and any abilities, and one model of a
client of any dialect. What the client is told, and what is on the disk afterwards, must be what the
commands mean by themselves, whichever way they went and however the bytes were cut.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.export import Export, offer, view_of
from gateway.scan.chunks import reply_scan
from gateway.scan.plan import PROPER, plan
from gateway.scan.requests import RequestScan
from gateway.scan.traffic import Traffic
from gateway.wire import transmission
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.handshake import BlockSizes, MetaContext
from tests.scan.peers import Feeder, pieces_of

pytestmark = pytest.mark.real

SIZE = 8192
FRAMINGS = (SIMPLE, STRUCTURED, EXTENDED)
ALLOCATION = "base:allocation"
HOLE = 3
CONTENT = bytes(0 if at % 1000 < 300 else at % 250 + 1 for at in range(SIZE))
"""Runs of zeros that end in the middle of blocks."""

NEEDED = Flag.HAS_FLAGS | Flag.SEND_TRIM | Flag.SEND_CACHE | Flag.SEND_FLUSH
OPTIONAL = (Flag.SEND_FUA, Flag.SEND_WRITE_ZEROES, Flag.SEND_DF, Flag.CAN_MULTI_CONN)


@dataclass(frozen=True)
class Command:
    kind: Cmd
    offset: int
    length: int
    flags: int = 0
    fill: int = 0

    @property
    def data(self) -> bytes:
        return bytes([self.fill]) * self.length if self.kind is Cmd.WRITE else b""


@dataclass(frozen=True)
class Window:
    """The part of the disk that the client sees as all of it, in bytes."""

    base: int = 0
    size: int = SIZE


@dataclass(frozen=True)
class Told:
    """What a reply means."""

    error: int = 0
    data: bytes = b""
    status: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = ()


@dataclass
class Upstream:
    """A server that obeys, and complains of whatever it was not told to expect."""

    framing: Framing
    minimum: int
    maximum: int
    flags: int
    chunk: int
    """READs are answered in chunks of this size, where chunks are spoken."""
    disk: bytearray = field(default_factory=lambda: bytearray(CONTENT), repr=False)
    failing: range = range(0)
    """READs and WRITEs that touch it get EIO."""
    dirty: bool = False
    """Something was written that no FUA or FLUSH has covered."""

    def serve(self, sent: bytes) -> list[bytes]:
        """Carry out whole requests; give a reply for each, as a list of its pieces."""
        at, replies = 0, []
        request = self.framing.request
        while at < len(sent):
            magic, word, cookie, offset, length = request.unpack_from(sent, at)
            assert magic == self.framing.request_magic
            at += request.size
            command, flags = Cmd(word & 0xFFFF), word >> 16
            data = b""
            if command is Cmd.WRITE:
                data = sent[at : at + length]
                assert len(data) == length
                at += length
                assert bool(flags & CmdFlag.PAYLOAD_LEN) == (self.framing is EXTENDED)
            replies.append(b"".join(self._reply(command, flags, cookie, offset, length, data)))
        return replies

    def _reply(
        self, command: Cmd, flags: int, cookie: int, offset: int, length: int, data: bytes
    ) -> list[bytes]:
        framing = self.framing
        assert offset + length <= SIZE
        assert not (offset | length) % self.minimum
        assert not flags & CmdFlag.FUA or self.flags & Flag.SEND_FUA
        hurt = set(self.failing) & set(range(offset, offset + length))
        if hurt and command in (Cmd.READ, Cmd.WRITE):
            return [framing.failure(cookie, offset, 5, "bad", offset=min(hurt))]
        match command:
            case Cmd.READ:
                assert 0 < length <= self.maximum
                assert not flags & ~CmdFlag.DF
                return self._content(cookie, offset, length, whole=bool(flags & CmdFlag.DF))
            case Cmd.WRITE:
                assert 0 < length <= self.maximum
                self._change(offset, data, flags)
            case Cmd.WRITE_ZEROES:
                assert self.flags & Flag.SEND_WRITE_ZEROES
                self._change(offset, bytes(length), flags)
            case Cmd.TRIM:
                self.dirty |= not flags & CmdFlag.FUA
            case Cmd.FLUSH:
                assert not offset | length | flags
                self.dirty = False
            case Cmd.BLOCK_STATUS:
                return self._status(cookie, offset, length, one=bool(flags & CmdFlag.REQ_ONE))
            case _:
                assert command is Cmd.CACHE
        return [framing.success(cookie, offset, read=False)]

    def _change(self, offset: int, data: bytes, flags: int) -> None:
        self.disk[offset : offset + len(data)] = data
        self.dirty |= not flags & CmdFlag.FUA

    def _content(self, cookie: int, offset: int, length: int, *, whole: bool) -> list[bytes]:
        framing = self.framing
        step = self.chunk if framing.chunked and not whole else length
        said = []
        for at in range(offset, offset + length, step):
            size = min(step, offset + length - at)
            done = at + size == offset + length
            content = bytes(self.disk[at : at + size])
            if not any(content) and framing.chunked and not whole:
                said.append(framing.hole(cookie, offset, at, size, done=done))
            else:
                said.append(framing.data_head(cookie, offset, at, size, done=done) + content)
        return said

    def _status(self, cookie: int, offset: int, length: int, *, one: bool) -> list[bytes]:
        extents = extents_of(self.disk, offset, length)
        if one:
            del extents[1:]
        return [self.framing.status(cookie, offset, 7, extents, done=True)]


def extents_of(disk: bytes | bytearray, offset: int, length: int) -> list[tuple[int, int]]:
    """Runs of zeros and of anything else."""
    extents: list[tuple[int, int]] = []
    for byte in disk[offset : offset + length]:
        state = 0 if byte else HOLE
        if extents and extents[-1][1] == state:
            extents[-1] = (extents[-1][0] + 1, state)
        else:
            extents.append((1, state))
    return extents


def read_replies(framing: Framing, asked: dict[int, Command], sent: bytes) -> dict[int, Told]:
    """What whole replies mean to a client of `framing`."""
    told: dict[int, Told] = {}
    open_: dict[int, tuple[bytearray, set[int], list[tuple[int, tuple[tuple[int, int], ...]]]]] = {}
    errors: dict[int, int] = {}
    content_chunks: Counter[int] = Counter()
    at = 0
    while at < len(sent):
        if sent[at : at + 4] == b"\x67\x44\x66\x98":
            assert framing is not EXTENDED
            _magic, error, cookie = transmission.SIMPLE_REPLY.unpack_from(sent, at)
            at += 16
            command = asked[cookie]
            data = b""
            if command.kind is Cmd.READ and not error:
                assert framing is SIMPLE
                data = sent[at : at + command.length]
                at += command.length
            assert cookie not in told
            told[cookie] = Told(error, data)
            continue
        if framing is EXTENDED:
            _magic, word, cookie, echo, size = transmission.EXTENDED_CHUNK.unpack_from(sent, at)
            assert echo == asked[cookie].offset
            at += 32
        else:
            assert framing is STRUCTURED
            _magic, word, cookie, size = transmission.CHUNK.unpack_from(sent, at)
            at += 20
        payload, at = sent[at : at + size], at + size
        assert len(payload) == size
        command, kind = asked[cookie], word & 0xFFFF
        length = command.length if command.kind is Cmd.READ else 0
        data_, covered, status = open_.setdefault(cookie, (bytearray(length), set(), []))
        if kind in (1, 2):
            (where,) = transmission.OFFSET.unpack_from(payload)
            content = payload[8:] if kind == 1 else bytes(int.from_bytes(payload[8:]))
            start = where - command.offset
            new = set(range(start, start + len(content)))
            assert not new & covered
            covered |= new
            content_chunks[cookie] += 1
            data_[start : start + len(content)] = content
        elif kind in (5, 6):
            assert (kind == 6) == (framing is EXTENDED)
            decode = (
                transmission.decode_extended_extents if kind == 6 else transmission.decode_extents
            )
            context, extents = decode(payload)
            status.append((context, tuple(extents)))
        elif kind:
            assert kind in (0x8001, 0x8002)
            chunk = transmission.decode_error_chunk(kind, payload)
            errors.setdefault(cookie, chunk.error)
            if chunk.offset is not None:
                assert command.offset <= chunk.offset < command.offset + command.length
        if word >> 16:
            assert cookie not in told
            error = errors.get(cookie, 0)
            assert error or len(covered) == length
            if command.kind is Cmd.READ and command.flags & CmdFlag.DF:
                assert content_chunks[cookie] <= 1, "a READ with DF in fragments"
            told[cookie] = Told(error, b"" if error else bytes(data_), tuple(status))
    return told


def carried_through(
    client: Framing,
    upstream: Upstream,
    command: Command,
    cookie: int,
    session: tuple[Feeder, Feeder, Traffic],
    cuts: list[int],
) -> bytes:
    """Send one command through a session until its reply is here; give what the client was sent."""
    requests, replies, traffic = session
    flags = command.flags
    if command.kind is Cmd.WRITE and client is EXTENDED:
        flags |= CmdFlag.PAYLOAD_LEN
    head = client.encode_request(command.kind, flags, cookie, command.offset, command.length)
    scan = requests.scan
    assert isinstance(scan, RequestScan)
    requests.feed_all(pieces_of(head + command.data, cuts))
    while True:
        sent = bytes(requests.sent) + b"".join(traffic.to_upstream)
        requests.sent.clear()
        traffic.to_upstream.clear()
        if not sent:
            break
        for reply in upstream.serve(sent):
            replies.feed_all(pieces_of(reply, cuts))
    out = bytes(replies.sent) + b"".join(traffic.to_client) + b"".join(scan.answers)
    replies.sent.clear()
    traffic.to_client.clear()
    scan.answers.clear()
    assert not traffic.in_flight
    assert not traffic.jobs
    assert not traffic.jobs.bytes
    return out


def session_of(
    client: Framing, upstream: Upstream, window: Window, *, translate_all: bool
) -> tuple[Feeder, Feeder, Traffic]:
    chunked = upstream.framing.chunked
    export = Export(
        SIZE,
        upstream.flags,
        BlockSizes(upstream.minimum, 4096, upstream.maximum),
        structured=chunked,
        contexts=(MetaContext(7, ALLOCATION),) if chunked else (),
        extended=upstream.framing is EXTENDED,
    )
    made_up = frozenset() if chunked else frozenset({ALLOCATION})
    promised = offer(
        view_of(export, made_up=made_up).window(window.base, window.size),
        structured=client.chunked,
        extended=client is EXTENDED,
        selected=(MetaContext(1, ALLOCATION),) if client.chunked else (),
    )
    traffic = Traffic(plan(promised, export, PROPER, translated="all are" if translate_all else ""))
    return Feeder(RequestScan(traffic)), Feeder(reply_scan(traffic)), traffic


@st.composite
def windows(draw: st.DrawFn, upstream: Upstream) -> Window:
    """Parts of the disk, which need not begin at a block; mostly all of it."""
    base = draw(st.sampled_from([0, 0, 0, 512, 700, 1]))
    size = SIZE - base - draw(st.sampled_from([0, 0, 300]))
    return Window(base, size - size % upstream.minimum)


@st.composite
def commands(draw: st.DrawFn, client: Framing, size: int) -> Command:
    kinds = [
        Cmd.READ,
        Cmd.READ,
        Cmd.WRITE,
        Cmd.WRITE,
        Cmd.WRITE_ZEROES,
        Cmd.TRIM,
        Cmd.CACHE,
        Cmd.FLUSH,
    ]
    if client.chunked:
        kinds.append(Cmd.BLOCK_STATUS)
    kind = draw(st.sampled_from(kinds))
    if kind is Cmd.FLUSH:
        return Command(kind, 0, 0)
    offset = draw(st.one_of(st.integers(0, size - 1), st.sampled_from([0, 512, 1024, 4096])))
    length = draw(st.one_of(st.integers(1, 3000), st.sampled_from([512, 1024, 4096])))
    length = min(length, size - offset)
    flags = 0
    if kind in (Cmd.WRITE, Cmd.WRITE_ZEROES) and draw(st.booleans()):
        flags |= CmdFlag.FUA
    if kind is Cmd.READ and client.chunked and draw(st.booleans()):
        flags |= CmdFlag.DF
    if kind is Cmd.BLOCK_STATUS and draw(st.booleans()):
        flags |= CmdFlag.REQ_ONE
    return Command(kind, offset, length, flags, draw(st.integers(1, 250)))


@st.composite
def upstreams(draw: st.DrawFn) -> Upstream:
    flags = int(NEEDED)
    for flag in OPTIONAL:
        flags |= flag if draw(st.booleans()) else 0
    minimum = draw(st.sampled_from([1, 1, 512]))
    return Upstream(
        draw(st.sampled_from(FRAMINGS)),
        minimum,
        draw(st.sampled_from([1024, 4096])),
        flags,
        draw(st.sampled_from([100, 512, 5000])),
    )


def meant(disk: bytearray, command: Command, window: Window) -> Told:
    """What a command means by itself; changes the disk."""
    start = window.base + command.offset
    end = start + command.length
    match command.kind:
        case Cmd.READ:
            return Told(data=bytes(disk[start:end]))
        case Cmd.WRITE:
            disk[start:end] = command.data
        case Cmd.WRITE_ZEROES:
            disk[start:end] = bytes(command.length)
    return Told()


def check_status(told: Told, disk: bytes, command: Command, *, made_up: bool) -> None:
    """Extents may be fewer or go beyond; what they say has to be so."""
    [(context, extents)] = told.status
    assert context == 1
    assert all(length for length, _ in extents)
    assert sum(length for length, _ in extents[:-1]) < command.length
    if command.flags & CmdFlag.REQ_ONE:
        assert len(extents) == 1
        assert extents[0][0] <= command.length
    at = command.offset
    for length, state in extents:
        assert at + length <= len(disk)
        if made_up:
            assert not state
        elif state:
            assert not any(disk[at : at + length])
        at += length


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_every_way_means_the_same(data: st.DataObject) -> None:
    client = data.draw(st.sampled_from(FRAMINGS), "client")
    upstream = data.draw(upstreams(), "upstream")
    window = data.draw(windows(upstream), "window")
    some = st.lists(commands(client, window.size), min_size=1, max_size=6)
    asked = data.draw(some, "commands")
    cuts = data.draw(st.lists(st.integers(1, 5000), max_size=6), "cuts")
    for translate_all in (False, True):
        server = replace(upstream, disk=bytearray(upstream.disk))
        session = session_of(client, server, window, translate_all=translate_all)
        disk = bytearray(server.disk)
        for cookie, command in enumerate(asked, start=1000):
            server.dirty = False
            sent = carried_through(client, server, command, cookie, session, cuts)
            told = read_replies(client, {cookie: command}, sent)
            assert told.keys() == {cookie}
            expected = meant(disk, command, window)
            assert server.disk == disk
            assert not (command.flags & CmdFlag.FUA and server.dirty)
            if command.kind is Cmd.BLOCK_STATUS:
                assert not told[cookie].error
                made_up = not server.framing.chunked
                seen = bytes(disk[window.base : window.base + window.size])
                check_status(told[cookie], seen, command, made_up=made_up)
            else:
                assert told[cookie] == expected


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_every_way_fails_the_same(data: st.DataObject) -> None:
    """A range that the server cannot read or write gives EIO to whatever touches it, and to nothing else."""
    client = data.draw(st.sampled_from(FRAMINGS), "client")
    upstream = replace(data.draw(upstreams(), "upstream"), failing=range(3000, 3200))
    window = data.draw(windows(upstream), "window")
    command = data.draw(commands(client, window.size), "command")
    cuts = data.draw(st.lists(st.integers(1, 5000), max_size=6), "cuts")
    start = window.base + command.offset
    end = start + command.length
    if command.kind in (Cmd.READ, Cmd.WRITE):
        # Blocks that are only partly touched are read, so the whole of them counts.
        start, end = (
            start - start % upstream.minimum,
            -(-end // upstream.minimum) * upstream.minimum,
        )
    touched = bool(set(range(start, end)) & set(upstream.failing))
    for translate_all in (False, True):
        server = replace(upstream, disk=bytearray(upstream.disk))
        session = session_of(client, server, window, translate_all=translate_all)
        sent = carried_through(client, server, command, 1, session, cuts)
        told = read_replies(client, {1: command}, sent)[1]
        if command.kind in (Cmd.READ, Cmd.WRITE):
            assert told.error == (Errno.EIO if touched else 0)
        elif command.kind is not Cmd.WRITE_ZEROES:
            assert not told.error


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_a_death_in_the_middle_tells_every_command(framing: Framing) -> None:
    """Commands under way, jobs among them, get EIO once each when the link dies."""
    for link in FRAMINGS:
        upstream = Upstream(link, 1, 1024, int(NEEDED), 512)
        requests, replies, traffic = session_of(
            framing, upstream, Window(512, 7000), translate_all=False
        )
        asked = {1: Command(Cmd.READ, 0, 4096), 2: Command(Cmd.FLUSH, 0, 0)}
        asked[3] = Command(Cmd.WRITE_ZEROES, 0, 4096)
        for cookie, command in asked.items():
            head = framing.encode_request(command.kind, 0, cookie, command.offset, command.length)
            requests.feed(head)
        last = reply_scan(traffic).fail("gone")
        assert last is not None
        told = read_replies(framing, asked, b"".join(last))
        assert {cookie: reply.error for cookie, reply in told.items()} == dict.fromkeys(
            asked, Errno.EIO
        )
        assert not traffic.jobs
        assert not replies.sent
