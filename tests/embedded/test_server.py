from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.embedded import (
    PERSONALITIES,
    DiskError,
    MemoryDisk,
    Personality,
    Server,
    make_server,
)
from gateway.embedded.disk import BLOCK_BYTES, Data
from gateway.embedded.personality import EXPORT_NAME_ONLY, WITHOUT_STRUCTURED_REPLIES
from gateway.embedded.session import MAX_IN_FLIGHT
from gateway.protocol.client_role import Style
from gateway.uri import FileUri, Legacy, MemoryUri
from gateway.wire import handshake, transmission
from gateway.wire.constants import (
    Chunk,
    Cmd,
    CmdFlag,
    Errno,
    HandshakeFlag,
    Info,
    Opt,
    Rep,
)
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import ListedExport
from gateway.wire.limits import MAX_DRAIN_BYTES, MAX_REQUEST_BYTES, MIB
from tests.embedded.peers import connected, socket_pair

pytestmark = pytest.mark.real

PLAIN = PERSONALITIES["plain"]
SIZE = 8 * MIB


def memory(personality: Personality = PLAIN, *, read_only: bool = False) -> Server:
    return Server({"": MemoryDisk(SIZE, read_only=read_only)}, personality)


# --- Negotiation


async def test_what_go_tells() -> None:
    server = Server({"disk": MemoryDisk(SIZE)}, descriptions={"disk": "of memory"})
    async with connected(server) as client:
        told = await client.go("disk", wanted=list(Info))
        assert told.export is not None
        assert told.export.size == SIZE
        assert Flag(told.export.flags) == (
            Flag.HAS_FLAGS
            | Flag.SEND_FLUSH
            | Flag.SEND_FUA
            | Flag.SEND_TRIM
            | Flag.SEND_WRITE_ZEROES
            | Flag.SEND_DF
            | Flag.CAN_MULTI_CONN
            | Flag.SEND_CACHE
            | Flag.SEND_FAST_ZERO
        )
        assert (told.name, told.description) == ("disk", "of memory")
        assert told.block_sizes == handshake.BlockSizes(1, 4096, 64 * MIB)


async def test_what_go_tells_of_a_read_only_disk_without_structured_replies() -> None:
    async with connected(memory(read_only=True)) as client:
        told = await client.go(structured=False, wanted=())
        assert told.export is not None
        assert Flag(told.export.flags) == (
            Flag.HAS_FLAGS
            | Flag.READ_ONLY
            | Flag.SEND_FLUSH
            | Flag.SEND_FUA
            | Flag.CAN_MULTI_CONN
            | Flag.SEND_CACHE
        )
        assert told.block_sizes is None


async def test_exports_are_listed_and_others_unknown() -> None:
    server = Server({"": MemoryDisk(1), "b": MemoryDisk(2)}, descriptions={"b": "two"})
    async with connected(server) as client:
        await client.structured()
        client.negotiation.list_exports()
        assert (await client.answered()).exports == (ListedExport(""), ListedExport("b", "two"))
        client.negotiation.ask_info("c", ())
        assert (await client.refused()).reply == Rep.ERR_UNKNOWN
        client.negotiation.ask_contexts("c", (), select=False)
        assert (await client.refused()).reply == Rep.ERR_UNKNOWN
        client.negotiation.ask_info("b", ())
        export = (await client.answered()).export
        assert export is not None
        assert export.size == 2
        client.negotiation.abort()
        await client.answered()
        assert await client.rest() == b""


async def test_an_unknown_export_by_export_name_closes() -> None:
    async with connected(memory()) as client:
        await client.greeting()
        client.negotiation.export_name("nothing")
        with pytest.raises(EOFError):
            await client.event()


@pytest.mark.parametrize(
    ("queries", "select", "found"),
    [
        ([], False, ["base:allocation"]),
        (["base:"], False, ["base:allocation"]),
        (["base:allocation", "x-other:y"], False, ["base:allocation"]),
        (["qemu:"], False, []),
        ([], True, []),
        (["base:allocation"], True, ["base:allocation"]),
        (["base:"], True, []),
        (["base:alloc", "gibberish"], True, []),
    ],
)
async def test_meta_contexts(queries: list[str], select: bool, found: list[str]) -> None:
    async with connected(memory()) as client:
        await client.structured()
        client.negotiation.ask_contexts("", queries, select=select)
        assert [context.name for context in (await client.answered()).contexts] == found


@pytest.mark.parametrize("zeroes", [False, True])
async def test_export_name(zeroes: bool) -> None:
    flags = HandshakeFlag.FIXED_NEWSTYLE | (0 if zeroes else HandshakeFlag.NO_ZEROES)
    async with connected(memory(replace(PLAIN, handshake_flags=flags))) as client:
        await client.greeting()
        client.negotiation.export_name("")
        export = (await client.answered()).export
        assert export is not None
        assert export.size == SIZE
        await client.send(Cmd.READ, 0, 3)
        assert await client.simple_reply() == (1, 0, b"\0\0\0")


async def test_oldstyle() -> None:
    async with connected(memory(replace(PLAIN, oldstyle=True))) as client:
        greeted = await client.greeting()
        assert greeted.style is Style.OLDSTYLE
        assert greeted.export is not None
        assert greeted.export.size == SIZE
        assert not greeted.export.flags & Flag.SEND_DF
        await client.send(Cmd.WRITE, 7, data=b"abc")
        await client.send(Cmd.READ, 6, 5)
        assert await client.simple_reply() == (1, 0, b"")
        assert await client.simple_reply() == (2, 0, b"\0abc\0")


async def test_newstyle_that_is_not_fixed() -> None:
    async with connected(memory(replace(PLAIN, handshake_flags=0))) as client:
        assert (await client.greeting()).style is Style.NEWSTYLE
        client.negotiation.export_name("")
        assert (await client.answered()).export is not None


@pytest.mark.parametrize(
    ("unsupported", "ask"),
    [
        (WITHOUT_STRUCTURED_REPLIES, lambda n: n.ask_structured_replies()),
        (WITHOUT_STRUCTURED_REPLIES, lambda n: n.ask_contexts("", (), select=True)),
        (EXPORT_NAME_ONLY, lambda n: n.go("", ())),
    ],
)
async def test_unsupported_options_are_refused_and_the_rest_works(
    unsupported: frozenset[int], ask: Callable[[object], None]
) -> None:
    async with connected(memory(replace(PLAIN, unsupported=unsupported))) as client:
        await client.greeting()
        ask(client.negotiation)
        assert (await client.refused()).reply == Rep.ERR_UNSUP
        client.negotiation.export_name("")
        assert (await client.answered()).export is not None


async def test_q_n8_the_payload_of_an_unsupported_option_is_not_consumed() -> None:
    lost = replace(PLAIN, unsupported=EXPORT_NAME_ONLY, leaves_payload=True)
    async with connected(memory(lost)) as client:
        await client.greeting()
        client.negotiation.ask_structured_replies()  # no payload: it stays in step
        assert (await client.refused()).reply == Rep.ERR_UNSUP
        client.negotiation.go("a name of some length", ())
        assert (await client.refused()).reply == Rep.ERR_UNSUP
        client.negotiation.export_name("")
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.event()
    async with connected(memory(lost)) as client:
        await client.greeting()
        client.negotiation.export_name("")
        await client.answered()
        await client.send(Cmd.READ, 0, 1)
        assert await client.simple_reply() == (1, 0, b"\0")


async def test_q_n5_abort_is_not_acknowledged() -> None:
    async with connected(memory(replace(PLAIN, acknowledges_abort=False))) as client:
        await client.greeting()
        client.negotiation.abort()
        with pytest.raises(EOFError):
            await client.event()


async def test_q_n21_info_says_size_0() -> None:
    async with connected(memory(replace(PLAIN, info_size_zero=True))) as client:
        await client.greeting()
        client.negotiation.ask_info("", ())
        info = (await client.answered()).export
        client.negotiation.go("", ())
        go = (await client.answered()).export
        assert info is not None
        assert go is not None
        assert (info.size, go.size) == (0, SIZE)


async def test_q_n16_block_sizes_are_never_told() -> None:
    async with connected(memory(replace(PLAIN, block_sizes=None))) as client:
        assert (await client.go()).block_sizes is None
        # and then the largest of all is taken
        assert len(await client.read(0, SIZE)) == SIZE


async def test_a_client_that_does_not_choose_is_closed(autojump_clock: trio.abc.Clock) -> None:
    said: list[str] = []
    async with connected(Server({}, handshake_seconds=10, log=said.append)) as client:
        before = trio.current_time()
        await client.greeting()
        assert await client.rest() == b""
        assert trio.current_time() - before == pytest.approx(10)
    assert said == ["connection 0: no export was opened within 10 s"]


# --- Commands, structured replies


async def test_read_tells_holes_from_data() -> None:
    async with connected(memory()) as client:
        await client.go()
        await client.ask(Cmd.WRITE, BLOCK_BYTES, data=b"x" * BLOCK_BYTES)
        hole, data, rest = await client.ask(Cmd.READ, 100, 4 * BLOCK_BYTES)
        assert (hole.kind, hole.offset, hole.done) == (Chunk.OFFSET_HOLE, 100, False)
        assert int.from_bytes(hole.payload[8:]) == BLOCK_BYTES - 100
        assert (data.offset, data.data, data.done) == (BLOCK_BYTES, b"x" * BLOCK_BYTES, False)
        assert (rest.kind, rest.offset, rest.done) == (Chunk.OFFSET_HOLE, 2 * BLOCK_BYTES, True)
        (whole,) = await client.ask(Cmd.READ, 100, 4 * BLOCK_BYTES, flags=CmdFlag.DF)
        assert len(whole.data) == 4 * BLOCK_BYTES
        (short,) = await client.ask(Cmd.READ, 0, 512)
        assert short.data == bytes(512)


async def test_block_status() -> None:
    async with connected(memory()) as client:
        await client.go(contexts=["base:allocation"])
        await client.ask(Cmd.WRITE, BLOCK_BYTES, data=b"x")
        (chunk,) = await client.ask(Cmd.BLOCK_STATUS, 0, SIZE)
        assert chunk.extents == [
            (BLOCK_BYTES, 3),
            (BLOCK_BYTES, 0),
            (SIZE - 2 * BLOCK_BYTES, 3),
        ]
        (one,) = await client.ask(Cmd.BLOCK_STATUS, 1, SIZE - 1, flags=CmdFlag.REQ_ONE)
        assert one.extents == [(BLOCK_BYTES - 1, 3)]


async def test_q_s4_empty_extents() -> None:
    async with connected(memory(replace(PLAIN, empty_extents=True))) as client:
        await client.go(contexts=["base:allocation"])
        await client.ask(Cmd.WRITE, 0, data=b"x")
        (chunk,) = await client.ask(Cmd.BLOCK_STATUS, 0, 2 * BLOCK_BYTES)
        assert chunk.extents == [(BLOCK_BYTES, 0), (0, 0), (BLOCK_BYTES, 3)]


async def test_write_zeroes_trim_flush_cache() -> None:
    async with connected(memory()) as client:
        await client.go(contexts=["base:allocation"])
        await client.ask(Cmd.WRITE, 0, data=b"x" * 2 * BLOCK_BYTES, flags=CmdFlag.FUA)
        zero = CmdFlag.FUA | CmdFlag.FAST_ZERO
        assert await client.error(Cmd.WRITE_ZEROES, 10, BLOCK_BYTES, flags=zero) == 0
        assert await client.error(Cmd.WRITE_ZEROES, BLOCK_BYTES + 10, BLOCK_BYTES) == 0
        assert await client.error(Cmd.CACHE, 0, SIZE) == 0
        assert await client.error(Cmd.FLUSH) == 0
        expected = b"x" * 10 + bytes(2 * BLOCK_BYTES)
        assert await client.read(0, 2 * BLOCK_BYTES + 10) == expected
        assert await client.error(Cmd.WRITE_ZEROES, 0, SIZE, flags=CmdFlag.NO_HOLE) == 0
        (chunk,) = await client.ask(Cmd.BLOCK_STATUS, 0, SIZE)
        assert chunk.extents == [(SIZE, 0)]
        assert await client.error(Cmd.TRIM, 0, SIZE, flags=CmdFlag.FUA) == 0
        (chunk,) = await client.ask(Cmd.BLOCK_STATUS, 0, SIZE)
        assert chunk.extents == [(SIZE, 3)]


LEGAL_OR_NOT = [
    # command, offset, length, flags, error
    (Cmd.READ, 0, 0, 0, 0),
    (Cmd.READ, SIZE, 1, 0, Errno.EINVAL),
    (Cmd.READ, 2**64 - 1, 2**32 - 1, 0, Errno.EINVAL),
    (Cmd.READ, 0, 1, CmdFlag.FUA, 0),
    (Cmd.READ, 0, 1, CmdFlag.NO_HOLE, Errno.EINVAL),
    (Cmd.WRITE, SIZE - 1, 2, 0, Errno.ENOSPC),
    (Cmd.WRITE, 0, 0, 0, 0),
    (Cmd.WRITE, 0, 9, CmdFlag.DF, Errno.EINVAL),
    (Cmd.WRITE, 0, MAX_REQUEST_BYTES + 1, 0, Errno.ENOSPC),
    (Cmd.TRIM, SIZE - 1, 2, 0, Errno.EINVAL),
    (Cmd.TRIM, 5, 0, 0, 0),
    (Cmd.WRITE_ZEROES, SIZE - 1, 2, 0, Errno.ENOSPC),
    (Cmd.WRITE_ZEROES, 0, 0, 0, 0),
    (Cmd.CACHE, 0, SIZE + 1, 0, Errno.EINVAL),
    (Cmd.BLOCK_STATUS, 0, 0, 0, Errno.EINVAL),
    (Cmd.BLOCK_STATUS, 0, SIZE + 1, 0, Errno.EINVAL),
    (Cmd.FLUSH, 0, 0, CmdFlag.FUA, 0),
    (Cmd.FLUSH, 1, 0, 0, Errno.EINVAL),
    (8, 0, 512, 0, Errno.EINVAL),
    (77, 0, 0, 0, Errno.EINVAL),
]


@pytest.mark.parametrize("structured", [False, True])
async def test_errors_are_proto_mds_and_the_connection_goes_on(structured: bool) -> None:
    async with connected(memory()) as client:
        contexts = ["base:allocation"] if structured else []
        await client.go(structured=structured, contexts=contexts)
        for command, offset, length, flags, error in LEGAL_OR_NOT:
            data = bytes(length) if command == Cmd.WRITE else b""
            if structured:
                assert await client.error(command, offset, length, flags=flags, data=data) == error
            elif command != Cmd.BLOCK_STATUS:
                cookie = await client.send(command, offset, length, flags=flags, data=data)
                assert (await client.simple_reply())[:2] == (cookie, error)
        if not structured:
            await client.send(Cmd.BLOCK_STATUS, 0, 512)
            assert (await client.simple_reply())[1] == Errno.EINVAL


@pytest.mark.parametrize("command", [Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES])
async def test_read_only(command: Cmd) -> None:
    async with connected(memory(read_only=True)) as client:
        await client.go()
        data = b"x" * 512 if command == Cmd.WRITE else b""
        assert await client.error(command, 0, 512, data=data) == Errno.EPERM
        assert await client.read(0, 512) == bytes(512)


async def test_success_may_be_simple_under_structured_replies() -> None:
    async with connected(memory(replace(PLAIN, only_chunks=False))) as client:
        await client.go()
        cookie = await client.send(Cmd.WRITE, 0, data=b"x")
        assert await client.simple_reply() == (cookie, 0, b"")
        # but READ never, whatever becomes of it
        assert [chunk.kind for chunk in await client.ask(Cmd.READ)] == [Chunk.NONE]
        assert await client.error(Cmd.READ, SIZE, 1) == Errno.EINVAL


class FailingDisk(MemoryDisk):
    """Fails with the error that its offset says."""

    async def read(self, offset: int, length: int) -> Data:
        raise OSError(offset, os.strerror(offset))

    async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
        raise OSError(offset, os.strerror(offset))

    async def zero(self, offset: int, length: int, **how: bool) -> None:
        raise OSError(offset, os.strerror(offset))


async def test_errors_of_the_disk_as_they_are() -> None:
    server = Server({"": FailingDisk(SIZE)}, replace(PLAIN, raw_errors=True))
    async with connected(server) as client:
        await client.go()
        for number in (errno.EIO, errno.EBADF, errno.ESTALE, errno.EOVERFLOW):
            assert await client.error(Cmd.READ, number, 1) == number


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EIO, Errno.EIO),
        (errno.ENOSPC, Errno.ENOSPC),
        (errno.EDQUOT, Errno.ENOSPC),
        (errno.EFBIG, Errno.ENOSPC),
        (errno.EROFS, Errno.EPERM),
        (errno.EINVAL, Errno.EINVAL),
        (errno.ENXIO, Errno.EIO),
        (errno.EBADF, Errno.EIO),
    ],
)
async def test_errors_of_the_disk(number: int, told: Errno) -> None:
    async with connected(Server({"": FailingDisk(SIZE)})) as client:
        await client.go()
        assert await client.error(Cmd.READ, number, 1) == told
        assert await client.error(Cmd.WRITE, number, data=b"x") == told
        assert await client.error(Cmd.WRITE_ZEROES, number, 1) == told


async def test_enotsup_is_for_fast_zero_alone() -> None:
    async with connected(Server({"": FailingDisk(SIZE)})) as client:
        await client.go()
        fast = CmdFlag.FAST_ZERO
        assert await client.error(Cmd.WRITE_ZEROES, errno.ENOTSUP, 1, flags=fast) == Errno.ENOTSUP
        assert await client.error(Cmd.WRITE_ZEROES, errno.ENOTSUP, 1) == Errno.EIO


# --- Bounds, and the end


async def test_a_write_that_is_refused_keeps_in_step() -> None:
    async with connected(memory()) as client:
        await client.go()
        async with trio.open_nursery() as nursery:
            data = b"x" * (MAX_REQUEST_BYTES + 5)
            nursery.start_soon(lambda: client.send(Cmd.WRITE, 0, data=data, cookie=9))
            (refused,) = await client.reply(9)
        assert refused.error == Errno.ENOSPC
        assert await client.read(0, 1) == b"\0"


async def test_a_write_of_any_size_is_not_read() -> None:
    async with connected(memory()) as client:
        await client.go()
        await client.send(Cmd.WRITE, 0, MAX_DRAIN_BYTES + 1)
        assert await client.rest() == b""


async def test_the_largest_write_and_read() -> None:
    async with connected(Server({"": MemoryDisk(MAX_REQUEST_BYTES)})) as client:
        await client.go(structured=False)
        data = os.urandom(MAX_REQUEST_BYTES)
        await client.send(Cmd.WRITE, 0, data=data)
        assert (await client.simple_reply())[1] == 0
        await client.send(Cmd.READ, 0, MAX_REQUEST_BYTES)
        assert await client.simple_reply() == (2, 0, data)


@pytest.mark.parametrize("piece", [1, 7, 28, 29, 100_000])
async def test_requests_in_any_pieces(piece: int) -> None:
    conversation = (
        transmission.encode_request(Cmd.WRITE, 0, 1, 0, 5, b"hello")
        + transmission.encode_request(Cmd.READ, 0, 2, 0, 5)
        + transmission.encode_request(Cmd.WRITE, CmdFlag.DF, 3, 0, 3, b"bad")
        + transmission.encode_request(Cmd.READ, 0, 4, 1, 5)
        + transmission.DISC
    )
    async with connected(memory()) as client:
        await client.go(structured=False)
        for at in range(0, len(conversation), piece):
            await client.stream.send_all(conversation[at : at + piece])
        replies = await client.rest()
    reply = transmission.encode_simple_reply
    assert replies == reply(1) + reply(2) + b"hello" + reply(3, Errno.EINVAL) + reply(4) + b"ello\0"


async def test_a_client_that_never_reads_does_not_fill_the_memory(
    autojump_clock: trio.abc.Clock,
) -> None:
    asked = 0
    async with connected(memory()) as client:
        await client.go(structured=False)
        requests = b"".join(transmission.encode_request(0, 0, n, 0, SIZE) for n in range(1000))
        with trio.move_on_after(1):
            for at in range(0, len(requests), 28):
                await client.stream.send_all(requests[at : at + 28])
                asked += 1
            await trio.sleep_forever()
        for cookie in range(3):
            magic, error, found = transmission.SIMPLE_REPLY.unpack(await client.receive(16))
            assert (magic, error, found) == (0x67446698, 0, cookie)
            assert not any(await client.receive(SIZE))


async def test_many_requests_at_once_are_all_answered() -> None:
    async with connected(memory()) as client:
        await client.go(structured=False)
        count = 10 * MAX_IN_FLIGHT
        async with trio.open_nursery() as nursery:
            requests = b"".join(transmission.encode_request(0, 0, n, n, 8) for n in range(count))
            nursery.start_soon(client.stream.send_all, requests)
            replies = await client.receive(count * 24)
        cookies = [int.from_bytes(replies[n * 24 + 8 : n * 24 + 16]) for n in range(count)]
        assert cookies == list(range(count))


async def test_disc_finishes_what_is_under_way() -> None:
    gate = trio.Event()

    class SlowDisk(MemoryDisk):
        immediate = False

        async def write(self, offset: int, data: Data, *, fua: bool = False) -> None:
            await gate.wait()
            await super().write(offset, data)

    disk = SlowDisk(SIZE)
    async with connected(Server({"": disk})) as client:
        await client.go(structured=False)
        await client.send(Cmd.WRITE, 0, data=b"late")
        await client.send(Cmd.DISC)
        gate.set()
        assert await client.simple_reply() == (1, 0, b"")
        assert await client.rest() == b""
    assert bytes(await disk.read(0, 4)) == b"late"


async def test_requests_overtake_one_that_waits() -> None:
    gate = trio.Event()

    class SlowDisk(MemoryDisk):
        immediate = False

        async def flush(self) -> None:
            await gate.wait()

    async with connected(Server({"": SlowDisk(SIZE)})) as client:
        await client.go(structured=False)
        await client.send(Cmd.FLUSH)
        await client.send(Cmd.READ, 0, 2)
        assert await client.simple_reply() == (2, 0, b"\0\0")
        gate.set()
        assert await client.simple_reply() == (1, 0, b"")


async def test_connections_see_each_others_writes() -> None:
    server = memory()
    async with connected(server) as one, connected(server) as other:
        await one.go()
        await other.go()
        assert await other.read(0, 2) == b"\0\0"
        await one.ask(Cmd.WRITE, 0, data=b"ab")
        assert await other.read(0, 2) == b"ab"


async def test_a_request_with_a_wrong_magic_closes() -> None:
    said: list[str] = []
    async with connected(Server({"": MemoryDisk(SIZE)}, log=said.append)) as client:
        await client.go()
        await client.stream.send_all(bytes(28))
        assert await client.rest() == b""
    assert said == ["connection 0: a request begins with 0x00000000"]


# --- Garbage

head = st.sampled_from(list(Opt)).flatmap(
    lambda option: st.binary(max_size=40).map(lambda data: handshake.encode_option(option, data))
)
GARBAGE = st.lists(head | st.binary(max_size=60), max_size=8).map(b"".join)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(garbage=GARBAGE, flags=st.sampled_from([b"", b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\3"]))
@pytest.mark.parametrize("personality", [PLAIN, PERSONALITIES["qemu-3.0"], "leaves", "oldstyle"])
def test_garbage_never_raises(personality: Personality | str, flags: bytes, garbage: bytes) -> None:
    if personality == "leaves":
        personality = replace(PLAIN, unsupported=EXPORT_NAME_ONLY, leaves_payload=True)
    if personality == "oldstyle":
        personality = replace(PLAIN, oldstyle=True)
    assert isinstance(personality, Personality)
    trio.run(_feed, personality, flags + garbage)


async def _feed(personality: Personality, garbage: bytes) -> None:
    ours, theirs = socket_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory(personality).serve, theirs)
        async with ours:
            await ours.send_all(garbage)
            await ours.send_eof()
            received = b""
            try:
                while piece := await ours.receive_some():
                    received += piece
            except trio.BrokenResourceError:
                pass
    assert received.startswith(b"NBDMAGIC")


async def test_a_client_that_vanishes_anywhere() -> None:
    """Between any two bytes of a conversation."""
    options = handshake.CLIENT_FLAGS.pack(3) + handshake.encode_option(
        Opt.GO, handshake.encode_info_request("", ())
    )
    conversation = options + transmission.encode_request(Cmd.WRITE, 0, 1, 0, 5, b"hello")
    for length in range(len(conversation) + 1):
        ours, theirs = socket_pair()
        await ours.send_all(conversation[:length])
        await ours.aclose()
        await memory().serve(theirs)


# --- The door


async def test_make_server() -> None:
    for target in (MemoryUri(SIZE), Legacy("plain", SIZE)):
        async with connected(make_server(target)) as client:
            export = (await client.go()).export
            assert export is not None
            assert export.size == SIZE


async def test_make_server_of_a_file(workdir: Path) -> None:
    path = workdir / "disk.img"
    path.write_bytes(b"content!")
    async with connected(make_server(FileUri(path))) as client:
        await client.go()
        assert await client.read(0, 8) == b"content!"
        assert await client.error(Cmd.WRITE, 1, data=b"O", flags=CmdFlag.FUA) == 0
    assert path.read_bytes() == b"cOntent!"


async def test_make_server_of_what_is_not_there(workdir: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        make_server(FileUri(workdir / "nothing"))
    with pytest.raises(DiskError, match=r"no server 'qemu-0\.1' to imitate, only .*qemu-3\.0"):
        make_server(Legacy("qemu-0.1"))


async def test_several_contexts_of_several_exports_are_kept_apart() -> None:
    server = Server({"a": MemoryDisk(SIZE), "b": MemoryDisk(SIZE)})
    async with connected(server) as client:
        await client.structured()
        client.negotiation.ask_contexts("a", ["base:allocation"], select=True)
        await client.answered()
        client.negotiation.go("b", ())  # the selection was for another export
        await client.answered()
        assert await client.error(Cmd.BLOCK_STATUS, 0, 512) == Errno.EINVAL
