"""Each promise can be broken, and then it is told; a server that hangs or dies costs only the check."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gateway.embedded import Faults, MemoryDisk, Personality, Request, Server
from gateway.embedded.personality import ALL_SIZES, PERSONALITIES, PLAIN, lacking
from gateway.embedded.session import Negotiated
from gateway.inspect.conform import PROMISES, CannotConform, CheckResult, Conformity, conform
from gateway.inspect.conform.bench import Pattern
from gateway.inspect.conform.illegal import UNKNOWN_COMMAND, UNKNOWN_FLAG
from gateway.inspect.conform.promise import Promise
from gateway.uri import parse_nbd_uri
from gateway.wire import transmission
from gateway.wire.constants import Chunk, Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import STRUCTURED
from gateway.wire.handshake import BlockSizes, MetaContext
from tests.embedded.peers import listening

MIB = 1 << 20
SIZE = 200 * MIB
BY_NAME = {promise.name: promise for promise in PROMISES}


async def tried(server: Server, workdir: Path, *names: str, seconds: float = 30) -> Conformity:
    promises = [BY_NAME[name] for name in names] or PROMISES
    async with listening(server, workdir) as uri:
        return await conform(parse_nbd_uri(uri), promises=promises, reply_seconds=seconds)


def verdicts(found: Conformity) -> dict[str, str]:
    return {finding.promise.name: finding.verdict.value for finding in found.findings}


def broken(found: Conformity) -> set[str]:
    return {name for name, verdict in verdicts(found).items() if verdict == "fail"}


# --- One way to break each promise

Reply = list[bytes]
OnReply = Callable[[Request, Reply], Iterable[bytes]]


def success(request: Request) -> bytes:
    return transmission.encode_chunk(request.cookie, Chunk.NONE)


def failure(request: Request, error: int = Errno.EINVAL) -> bytes:
    return transmission.encode_error_chunk(request.cookie, error)


def when(
    condition: Callable[[Request], object], instead: Callable[[Request], bytes]
) -> Callable[[], Server]:
    """A server that gives another reply to some requests."""

    def on_reply(request: Request, reply: Reply) -> Iterable[bytes]:
        return [instead(request)] if condition(request) else reply

    return lambda: Server({"": MemoryDisk(SIZE)}, faults=Faults(on_reply=on_reply))


def who_is(**knobs: object) -> Callable[[], Server]:
    """A server with a personality."""
    personality = replace(PLAIN, name="broken", **knobs)  # type: ignore[arg-type] # by name
    return lambda: Server({"": MemoryDisk(SIZE)}, personality)


def takes_past_end(command: Cmd) -> Callable[[], Server]:
    def past(request: Request) -> bool:
        return request.command == command and request.offset + request.length > SIZE

    return when(past, success)


def with_fua(command: Cmd) -> Callable[[], Server]:
    return when(lambda r: r.command == command and r.flags & CmdFlag.FUA, failure)


class _Apart(Server):
    """Each connection has a disk of its own, as with nbd-server's copy-on-write."""

    def opened(
        self,
        name: str,
        *,
        structured: bool,
        extended: bool = False,
        contexts: tuple[MetaContext, ...] = (),
    ) -> Negotiated:
        opened = super().opened(name, structured=structured, extended=extended, contexts=contexts)
        opened.disk = MemoryDisk(SIZE)
        return opened


class _Forgetful(MemoryDisk):
    """The second unit of what is read is never what was written."""

    async def write(self, offset: int, data: object, *, fua: bool = False) -> None:
        pass


def two_extents(request: Request) -> bytes:
    half = request.length // 2
    return STRUCTURED.status(request.cookie, request.offset, 0, [(half, 0), (half, 0)], done=True)


def two_chunks(request: Request) -> bytes:
    half = request.length // 2
    return b"".join(
        STRUCTURED.hole(request.cookie, request.offset, request.offset + at, half, done=bool(at))
        for at in (0, half)
    )


BREAKERS: dict[str, Callable[[], Server]] = {
    "unaligned": who_is(counts_in=512),  # the quirk qemu-sectors
    "read-back": lambda: Server({"": _Forgetful(SIZE)}),
    "df-one-chunk": when(lambda r: r.flags & CmdFlag.DF, two_chunks),
    "df-agrees": who_is(offset_bytes=MIB),  # Q-S6
    "flush": when(lambda r: r.command == Cmd.FLUSH, failure),
    "fua-write": with_fua(Cmd.WRITE),
    "fua-trim": with_fua(Cmd.TRIM),
    "fua-write-zeroes": with_fua(Cmd.WRITE_ZEROES),
    "fua-elsewhere": with_fua(Cmd.READ),
    "trim-range": who_is(trims_blocks_of=4096),  # Q-S25
    "cache": who_is(cache_answers_data=True),  # Q-S2
    "write-zeroes-long": who_is(zeroes_at_most=64 * MIB),  # Q-N1
    "write-zeroes-no-hole": when(lambda r: r.flags & CmdFlag.NO_HOLE, failure),
    "fast-zero": when(
        lambda r: r.flags & CmdFlag.FAST_ZERO, lambda r: failure(r, Errno.ENOTSUP)
    ),  # it was done all the same
    "status-extents": who_is(empty_extents=True),  # Q-S4
    "status-req-one": when(lambda r: r.flags & CmdFlag.REQ_ONE, two_extents),
    "status-data": who_is(offset_bytes=MIB),
    "status-zero": who_is(offset_bytes=MIB),
    "read-past-end": takes_past_end(Cmd.READ),
    "write-past-end": takes_past_end(Cmd.WRITE),
    "trim-past-end": takes_past_end(Cmd.TRIM),
    "write-zeroes-past-end": takes_past_end(Cmd.WRITE_ZEROES),
    "status-past-end": when(
        lambda r: r.command == Cmd.BLOCK_STATUS and r.offset + r.length > SIZE, two_extents
    ),
    "unknown-command": when(lambda r: r.command == UNKNOWN_COMMAND, success),
    "unknown-flag": when(
        lambda r: r.flags == UNKNOWN_FLAG and r.command == Cmd.READ,
        lambda r: STRUCTURED.hole(r.cookie, r.offset, r.offset, r.length, done=True),
    ),
    "unknown-flag-write": when(
        lambda r: r.flags == UNKNOWN_FLAG and r.command == Cmd.WRITE, success
    ),
    "simple-agrees": who_is(offset_bytes=MIB),
    "multi-conn-flush": lambda: _Apart({"": MemoryDisk(SIZE)}),
    "multi-conn-stale": who_is(incoherent_connections=True),
    "multi-conn-others": who_is(incoherent_connections=True),
    "multi-conn-fua": who_is(incoherent_connections=True),
    "write-too-long": when(lambda r: r.command == Cmd.WRITE and r.length > 64 * MIB, success),
}


def test_there_is_a_way_to_break_every_promise() -> None:
    assert BREAKERS.keys() == BY_NAME.keys() - {"zero-length"}  # which is noted only


@pytest.mark.parametrize("name", BREAKERS)
async def test_a_broken_promise_is_told(name: str, workdir: Path) -> None:
    found = await tried(BREAKERS[name](), workdir, name)
    [finding] = found.findings
    assert finding.verdict is CheckResult.BROKEN, finding
    assert finding.expected
    assert finding.came
    assert not found.kept


@pytest.mark.parametrize("name", ["plain"])
async def test_a_server_that_keeps_all(name: str, workdir: Path) -> None:
    server = Server({"": MemoryDisk(SIZE)}, PERSONALITIES[name])
    found = await tried(server, workdir)
    assert set(verdicts(found).values()) == {"pass"}
    assert found.kept


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qemu-3.0", {"cache"}),
        (
            "qemu-3.0-incoherent",
            {"cache", "multi-conn-stale", "multi-conn-others", "multi-conn-fua"},
        ),
        ("qemu-2.5", {"trim-range", "unaligned"}),
        ("nbd-server-3.14", set[str]()),
        ("nbd-server-3.24", {"write-zeroes-long"}),
    ],
)
async def test_old_servers(name: str, expected: set[str], workdir: Path) -> None:
    found = await tried(Server({"": MemoryDisk(SIZE)}, PERSONALITIES[name]), workdir)
    assert broken(found) == expected


@pytest.mark.parametrize(
    "personality",
    [
        replace(PLAIN, block_sizes=BlockSizes(65536, 65536, MIB)),
        replace(PLAIN, block_sizes=BlockSizes(4096, 65536, 65536)),
        replace(PLAIN, block_sizes=None, block_sizes_unasked=None),
        replace(PLAIN, oldstyle=True),
        replace(PLAIN, flags=lacking(Flag.SEND_FLUSH, Flag.SEND_FUA)),
        replace(PLAIN, contexts=()),
    ],
)
@pytest.mark.parametrize(
    "size",
    [MIB, pytest.param(3 * MIB + 65536, marks=pytest.mark.real)],  # there is four times as much
)
async def test_no_proper_server_is_blamed(
    personality: Personality, size: int, workdir: Path
) -> None:
    found = await tried(Server({"": MemoryDisk(size)}, personality), workdir)
    assert broken(found) == set()


async def test_an_odd_size(workdir: Path) -> None:
    found = await tried(Server({"": MemoryDisk(2 * MIB + 777)}), workdir)
    assert broken(found) == set()
    [note] = next(f.notes for f in found.findings if f.promise.name == "write-zeroes-long")
    assert "has room for" in note


async def test_a_read_only_export_is_not_written_to(workdir: Path) -> None:
    disk = MemoryDisk(4 * MIB, read_only=True)
    asked: list[int] = []

    def on_reply(request: Request, reply: Reply) -> Iterable[bytes]:
        asked.append(request.command)
        return reply

    found = await tried(Server({"": disk}, faults=Faults(on_reply=on_reply)), workdir)
    assert not {Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES} & set(asked)
    passed = {name for name, verdict in verdicts(found).items() if verdict == "pass"}
    assert {"df-agrees", "status-extents", "read-past-end", "simple-agrees"} <= passed
    assert verdicts(found)["write-zeroes-long"] == "not offered"
    assert found.kept


# --- Servers that hang, die or speak nonsense


async def test_a_server_that_hangs_fails_that_check_alone(
    workdir: Path, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(never_reply=frozenset({Cmd.CACHE})))
    found = await tried(server, workdir, "flush", "cache", "read-back")
    assert verdicts(found) == {"flush": "pass", "cache": "fail", "read-back": "pass"}
    assert found.findings[1].came == "none in 30 s"


async def test_a_check_that_takes_too_long_fails(workdir: Path) -> None:
    async with listening(Server({"": MemoryDisk(SIZE)}), workdir) as uri:
        promises = [BY_NAME["flush"], BY_NAME["read-back"]]
        found = await conform(parse_nbd_uri(uri), promises=promises, check_seconds=0)
    assert broken(found) == {"flush", "read-back"}
    assert found.findings[0].came == "none in 0 s"


async def test_a_server_that_never_reads_fails_that_check_alone(
    workdir: Path, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(
        {"": MemoryDisk(SIZE)},
        faults=lambda n: (
            Faults(stall_after_bytes=0, count_from_transmission=True) if n == 0 else Faults()
        ),
    )
    found = await tried(server, workdir, "flush", "read-back")
    assert verdicts(found) == {"flush": "fail", "read-back": "pass"}


async def test_a_server_that_hangs_up_fails_that_check_alone(workdir: Path) -> None:
    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(close_on_command=Cmd.CACHE))
    found = await tried(server, workdir, "flush", "cache", "read-back")
    assert verdicts(found) == {"flush": "pass", "cache": "fail", "read-back": "pass"}
    assert "closed" in found.findings[1].came


async def test_hanging_up_at_what_is_unspecified_is_noted(workdir: Path) -> None:
    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(close_on_command=Cmd.TRIM))
    found = await tried(server, workdir, "zero-length")
    assert found.kept
    assert "TRIM: the connection was closed" in found.findings[0].notes[0]


@asynccontextmanager
async def _ending(server: Server, workdir: Path) -> AsyncIterator[str]:
    """A server that serves one client, and then ends."""
    path = workdir / "once"
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(str(path))
        sock.listen()

        async def serve() -> None:
            stream, _ = await sock.accept()
            sock.close()
            path.unlink()
            await server.serve(trio.SocketStream(stream))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield f"nbd+unix:///?socket={path}"


async def _tried_once(server: Server, workdir: Path, names: Iterable[str]) -> Conformity:
    async with _ending(server, workdir) as uri:
        return await conform(parse_nbd_uri(uri), promises=[BY_NAME[name] for name in names])


async def test_a_server_that_died_fails_the_rest(workdir: Path) -> None:
    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(close_on_command=Cmd.CACHE))
    found = await _tried_once(server, workdir, ["flush", "cache", "read-back", "flush", "cache"])
    said = [finding.verdict.value for finding in found.findings]
    assert said == ["pass", "fail", "fail", "fail", "fail"]
    assert found.findings[-1].expected == "a connection"


async def test_a_server_for_one_client_is_not_blamed(workdir: Path) -> None:
    """qemu-nbd without -t: what needs another connection cannot be found out."""
    names = ["flush", "read-back", "simple-agrees", "zero-length"]
    found = await _tried_once(Server({"": MemoryDisk(SIZE)}), workdir, names)
    said = [finding.verdict.value for finding in found.findings]
    assert said == ["pass", "pass", "not offered", "not offered"]
    assert "no other client" in found.findings[-1].notes[0]


def _chunks(*chunks: Callable[[Request], bytes]) -> OnReply:
    """Replace the reply to READs of a unit or more."""

    def on_reply(request: Request, reply: Reply) -> Iterable[bytes]:
        if request.command == Cmd.READ and request.length >= 65536:
            return [chunk(request) for chunk in chunks]
        return reply

    return on_reply


def _hole(at: int, length: int, *, done: bool = False) -> Callable[[Request], bytes]:
    return lambda r: STRUCTURED.hole(r.cookie, r.offset, r.offset + at, length, done=done)


NONSENSE: dict[str, tuple[OnReply, str]] = {
    "another cookie": (
        _chunks(lambda r: transmission.encode_chunk(r.cookie + 1, Chunk.NONE)),
        "the cookie of READ",
    ),
    "a simple reply to READ": (  # Q-N2, Q-N3
        _chunks(lambda r: transmission.encode_simple_reply(r.cookie, Errno.EINVAL)),
        "a structured reply to READ",
    ),
    "no data": (_chunks(success), "all of READ"),
    "a gap": (_chunks(_hole(512, 1024), success), "each byte once"),
    "an overlap": (_chunks(_hole(0, 1024), _hole(512, 1024), success), "each byte once"),
    "too much": (_chunks(_hole(0, 2 * MIB, done=True)), "content within READ"),
    "a hole of nothing": (_chunks(_hole(0, 0, done=True)), "content within READ"),
    "NONE without DONE": (
        _chunks(lambda r: transmission.encode_chunk(r.cookie, Chunk.NONE, done=False)),
        "DONE with a chunk NONE",
    ),
    "a payload of 4 GiB": (
        _chunks(
            lambda r: transmission.CHUNK.pack(0x668E33EF, Chunk.OFFSET_DATA, r.cookie, 2**32 - 1)
        ),
        "at most",
    ),
    "an error that is none": (_chunks(lambda r: failure(r, 11)), "Error values"),  # Q-N13
    "another magic": (_chunks(lambda r: bytes(32)), "a reply's magic"),
    "half an error chunk": (
        _chunks(lambda r: transmission.encode_chunk(r.cookie, Chunk.ERROR, b"\0")),
        "as it is specified",
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_named(name: str, workdir: Path) -> None:
    on_reply, expected = NONSENSE[name]
    server = Server({"": MemoryDisk(4 * MIB)}, faults=Faults(on_reply=on_reply))
    found = await tried(server, workdir, "read-back")
    [finding] = found.findings
    assert finding.verdict is CheckResult.BROKEN
    assert expected in finding.expected, finding


async def test_another_error_than_usual_is_noted(workdir: Path) -> None:
    """A SHOULD is no promise."""
    server = Server({"": MemoryDisk(SIZE)}, replace(PLAIN, only_error=Errno.EIO))
    found = await tried(server, workdir, "read-past-end")
    assert found.kept
    assert "should be with EINVAL" in found.findings[0].notes[0]


async def test_long_zeroes_may_be_refused_as_too_long(workdir: Path) -> None:
    def on_reply(request: Request, reply: Reply) -> Iterable[bytes]:
        if request.command == Cmd.WRITE_ZEROES and request.length > ALL_SIZES.maximum:
            return [failure(request, Errno.EOVERFLOW)]
        return reply

    server = Server({"": MemoryDisk(SIZE)}, faults=Faults(on_reply=on_reply))
    found = await tried(server, workdir, "write-zeroes-long")
    assert found.kept
    assert "EOVERFLOW" in found.findings[0].notes[0]


# --- What cannot be asked


async def test_an_export_that_is_too_small(workdir: Path) -> None:
    async with listening(Server({"": MemoryDisk(MIB - 512)}), workdir) as uri:
        with pytest.raises(CannotConform, match="it takes 1048576"):
            await conform(parse_nbd_uri(uri))


async def test_an_export_that_is_not_there(workdir: Path) -> None:
    async with listening(Server({"other": MemoryDisk(MIB)}), workdir) as uri:
        with pytest.raises(CannotConform, match="there is no export"):
            await conform(parse_nbd_uri(uri))


SECTIONS = {
    "Request types",
    "Transmission flags",
    "Command flags",
    "Structured reply types",
    "base:allocation metadata context",
    "Error values",
    "Size constraints",
}
NAMES = {member.name for enum in (Cmd, CmdFlag, Flag, Chunk) for member in enum}


def test_every_promise_says_where_it_is_written() -> None:
    assert len(BY_NAME) == len(PROMISES)
    for promise in PROMISES:
        assert isinstance(promise, Promise)
        assert promise.sentence
        section, _, name = promise.section.partition(": ")
        assert section in SECTIONS
        assert not name or name in NAMES, name


def test_no_shift_of_the_pattern_looks_like_it() -> None:
    pattern = Pattern(0, 127, 0)
    data = {unit for unit in range(127) if pattern.is_data(unit)}
    for shift in range(1, 120):  # 7.5 MiB
        there = {unit for unit in data if unit + shift < 127}
        assert any(unit + shift not in data for unit in there)
