"""Extended headers, and BLOCK_STATUS with a payload: "NBD_OPT_EXTENDED_HEADERS" in proto.md on its branch
extension-ext-header. Distributions still have programs without them, so the peer here says its bytes itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Personality, Request, Server
from gateway.embedded.disk import BLOCK_BYTES, Extent
from gateway.embedded.personality import (
    EXPORT_NAME_ONLY,
    WITHOUT_EXTENDED_HEADERS,
    WITHOUT_STRUCTURED_REPLIES,
    lacking,
)
from gateway.wire import handshake, transmission
from gateway.wire.constants import Chunk, Cmd, CmdFlag, Errno, Opt, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import GIB, MIB
from tests.embedded.peers import Client, connected, socket_pair

PLAIN = PERSONALITIES["plain"]
ALLOCATION, BITMAP = "base:allocation", "qemu:dirty-bitmap:b"
SIZE = 4 * MIB
LARGE = 12 * GIB
MARKED = CmdFlag.PAYLOAD_LEN


def memory(personality: Personality = PLAIN, *, size: int = SIZE) -> Server:
    return Server({"": MemoryDisk(size)}, personality)


async def alive(client: Client) -> None:
    """The connection is in step."""
    assert await client.error(Cmd.READ, 0, 512) == 0


# --- Negotiation


@pytest.mark.parametrize(
    "personality",
    [
        PERSONALITIES["qemu-3.0"],
        replace(PLAIN, unsupported=WITHOUT_EXTENDED_HEADERS),
        replace(PLAIN, unsupported=WITHOUT_STRUCTURED_REPLIES),
        replace(PLAIN, unsupported=EXPORT_NAME_ONLY),
    ],
    ids=["qemu-3.0", "structured", "simple", "EXPORT_NAME"],
)
async def test_who_does_not_have_them(personality: Personality) -> None:
    async with connected(memory(personality)) as client:
        await client.greeting()
        client.negotiation.ask_extended_headers()
        assert (await client.refused()).reply == Rep.ERR_UNSUP
        client.negotiation.export_name("")
        await client.answered()
        await client.send(Cmd.READ, 0, 3)
        assert await client.simple_reply() == (1, 0, bytes(3))


async def test_they_include_structured_replies_and_come_after_them_too() -> None:
    async with connected(memory()) as client:
        await client.structured()
        client.negotiation.ask_extended_headers()
        await client.answered()
        client.negotiation.ask_structured_replies()
        assert (await client.refused()).reply == Rep.ERR_EXT_HEADER_REQD
        client.negotiation.ask_contexts("", [ALLOCATION], select=True)
        assert len((await client.answered()).contexts) == 1
        client.negotiation.go("", ())
        told = await client.answered()
        assert told.export is not None
        assert told.export.flags & Flag.SEND_DF
        assert await client.read(0, 3) == bytes(3)


async def test_export_name_after_them_closes() -> None:
    """ "a client MUST NOT use NBD_OPT_EXPORT_NAME", and there is no way to say so."""
    async with connected(memory()) as client:
        await client.greeting()
        client.negotiation.ask_extended_headers()
        await client.answered()
        await client.stream.send_all(handshake.encode_option(Opt.EXPORT_NAME))
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("extended", "contexts", "extended_flags", "in_info", "in_go"),
    [
        (True, [ALLOCATION], Flag.BLOCK_STATUS_PAYLOAD, True, True),
        (True, [], Flag.BLOCK_STATUS_PAYLOAD, True, False),
        (True, [ALLOCATION], 0, False, False),
        (False, [ALLOCATION], Flag.BLOCK_STATUS_PAYLOAD, False, False),
    ],
)
async def test_where_block_status_payload_is_told(
    extended: bool, contexts: list[str], extended_flags: int, in_info: bool, in_go: bool
) -> None:
    async with connected(memory(replace(PLAIN, extended_flags=extended_flags))) as client:
        await client.greeting()
        if extended:
            client.negotiation.ask_extended_headers()
        else:
            client.negotiation.ask_structured_replies()
        await client.answered()
        client.negotiation.ask_contexts("", contexts, select=True)
        await client.answered()
        for ask, told in ((client.negotiation.ask_info, in_info), (client.negotiation.go, in_go)):
            ask("", ())
            export = (await client.answered()).export
            assert export is not None
            assert bool(export.flags & Flag.BLOCK_STATUS_PAYLOAD) == told


# --- Requests and replies


async def test_every_reply_is_made_of_extended_chunks() -> None:
    """ "the server MUST NOT use simple replies even when there is no payload"; `Client.reply` looks at the
    offset, which "MUST match the offset of the client's request".
    """
    async with connected(memory(replace(PLAIN, only_chunks=False))) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        for command, offset, length, data, kinds in [
            (Cmd.WRITE, BLOCK_BYTES + 7, 0, b"x" * 100, [Chunk.NONE]),
            (Cmd.READ, 7, 100, b"", [Chunk.OFFSET_DATA]),
            (Cmd.READ, 7, 3 * BLOCK_BYTES, b"", [2, 1, 2]),
            (Cmd.READ, 7, 0, b"", [Chunk.NONE]),
            (Cmd.READ, SIZE, 1, b"", [Chunk.ERROR]),
            (Cmd.READ, 2**64 - 1, 2**64 - 1, b"", [Chunk.ERROR]),
            (Cmd.FLUSH, 0, 0, b"", [Chunk.NONE]),
            (Cmd.TRIM, 512, 512, b"", [Chunk.NONE]),
            (Cmd.CACHE, 512, 512, b"", [Chunk.NONE]),
            (Cmd.WRITE_ZEROES, 512, 512, b"", [Chunk.NONE]),
            (Cmd.BLOCK_STATUS, 512, 512, b"", [Chunk.BLOCK_STATUS_EXT]),
            (8, 512, 512, b"", [Chunk.ERROR]),
        ]:
            chunks = await client.ask(command, offset, length, data=data)
            assert [chunk.kind for chunk in chunks] == kinds


@pytest.mark.parametrize("marked", [True, False])
async def test_a_write_is_one_with_payload_len_or_without(marked: bool) -> None:
    """Without is what qemu's client sends (Q-C1)."""
    async with connected(memory()) as client:
        await client.go(extended=True)
        await client.reply(await client.send(Cmd.WRITE, 9, data=b"hello", marked=marked))
        assert await client.read(8, 7) == b"\0hello\0"
        cookie = await client.send(Cmd.WRITE, SIZE, data=b"hello", marked=marked)
        (refused,) = await client.reply(cookie)
        assert refused.error == Errno.ENOSPC
        await alive(client)


async def test_against_a_model_of_the_disk() -> None:
    rng = random.Random(1)
    model = bytearray(SIZE)
    async with connected(memory()) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        for _ in range(150):
            length = rng.randrange(1, rng.choice([700, 3 * BLOCK_BYTES]))
            offset = rng.randrange(SIZE - length)
            command = rng.choice([Cmd.WRITE, Cmd.WRITE, Cmd.WRITE_ZEROES])
            data = rng.randbytes(length) if command is Cmd.WRITE else b""
            flags = rng.choice([0, CmdFlag.FUA])
            if command is Cmd.WRITE_ZEROES:
                flags |= rng.choice([0, CmdFlag.NO_HOLE, CmdFlag.FAST_ZERO])
            assert await client.error(command, offset, length, flags=flags, data=data) == 0
            model[offset : offset + length] = data or bytes(length)
            before = max(0, offset - 1000)
            assert await client.read(before, length + 1000) == model[before:][: length + 1000]
        assert await client.read(0, SIZE) == model
        at = 0
        for length, status in (await client.status(0, SIZE))[0]:
            if status:
                assert not any(model[at : at + length])
            at += length
        assert at == SIZE


async def test_lengths_of_more_than_32_bits() -> None:
    async with connected(memory(size=LARGE)) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        await client.ask(Cmd.WRITE, LARGE - 5, data=b"hello")
        length = LARGE - 100
        assert await client.status(50, LARGE - 50) == {
            0: [(LARGE - 50 - BLOCK_BYTES, 3), (BLOCK_BYTES, 0)]
        }
        for command in (Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES):
            assert await client.error(command, 50, length) == 0
        assert await client.read(LARGE - 60, 60) == bytes(55) + b"hello"
        assert await client.error(Cmd.WRITE_ZEROES, 50, length + 50) == 0
        assert await client.read(LARGE - 60, 60) == bytes(60)
        assert await client.error(Cmd.TRIM, 50, LARGE - 50) == 0
        assert await client.status(50, LARGE - 50, [0]) == {0: [(LARGE - 50, 3)]}
        for command in (Cmd.TRIM, Cmd.CACHE, Cmd.BLOCK_STATUS):
            assert await client.error(command, 50, LARGE) == Errno.EINVAL
            assert await client.error(command, 50, 2**64 - 50) == Errno.EINVAL
        assert await client.error(Cmd.WRITE_ZEROES, 50, LARGE) == Errno.ENOSPC
        assert await client.error(Cmd.READ, 0, 2**32 + 1) == Errno.EINVAL


@pytest.mark.parametrize("piece", [1, 31, 33, 100_000])
async def test_requests_in_any_pieces(piece: int) -> None:
    conversation = b"".join(
        [
            EXTENDED.encode_request(Cmd.WRITE, MARKED, 1, 0, 5) + b"hello",
            EXTENDED.encode_request(Cmd.TRIM, MARKED, 2, 0, 3) + b"abc",
            EXTENDED.encode_request(Cmd.BLOCK_STATUS, MARKED, 3, 0, 12),
            transmission.encode_status_payload(10, [0]),
            EXTENDED.encode_request(Cmd.READ, 0, 4, 0, 5),
            EXTENDED.encode_request(Cmd.DISC, 0, 5, 0, 0),
        ]
    )
    async with connected(memory()) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        for at in range(0, len(conversation), piece):
            await client.stream.send_all(conversation[at : at + piece])
        assert (await client.reply(1))[0].kind == Chunk.NONE
        assert (await client.reply(2))[0].error == Errno.EINVAL
        assert (await client.reply(3))[0].status == (0, [(10, 0)])
        assert (await client.reply(4))[0].data == b"hello"
        assert await client.rest() == b""


@pytest.mark.parametrize("extended", [True, False])
async def test_the_other_magic_closes(extended: bool) -> None:
    async with connected(memory()) as client:
        await client.go(extended=extended)
        compact = transmission.encode_request(Cmd.READ, 0, 1, 0, 512)
        other = EXTENDED.encode_request(Cmd.READ, 0, 1, 0, 512)
        await client.stream.send_all(compact + bytes(4) if extended else other[:28])
        assert await client.rest() == b""


# --- Payloads


@pytest.mark.parametrize("length", [1, 12, 5000, 200_000])
@pytest.mark.parametrize(
    "command", [Cmd.READ, Cmd.FLUSH, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES, 8, 99]
)
async def test_a_payload_where_none_is_taken_is_consumed(command: int, length: int) -> None:
    async with connected(memory()) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        # It looks like a request, which must not be carried out.
        trap = EXTENDED.encode_request(Cmd.WRITE_ZEROES, 0, 77, 0, SIZE)
        await client.ask(Cmd.WRITE, 0, data=b"hello")
        data = (trap * (length // len(trap) + 1))[:length]
        assert await client.error(command, 0, data=data) == Errno.EINVAL
        assert await client.read(0, 5) == b"hello"


@pytest.mark.parametrize("command", [Cmd.READ, Cmd.TRIM, Cmd.BLOCK_STATUS])
async def test_payload_len_of_nothing_is_refused(command: int) -> None:
    """The length is that of a "(nonzero) payload"."""
    async with connected(memory()) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        assert await client.error(command, 0, 0, flags=MARKED) == Errno.EINVAL
        await alive(client)


@pytest.mark.parametrize("structured", [True, False])
async def test_payload_len_means_nothing_in_compact_requests(structured: bool) -> None:
    """ "In the compact style, the client MUST NOT use" it; the flag is refused, and no payload follows."""
    async with connected(memory()) as client:
        await client.go(structured=structured)
        await client.send(Cmd.TRIM, 0, 512, flags=MARKED)
        if structured:
            assert (await client.reply(1))[0].error == Errno.EINVAL
            await alive(client)
        else:
            assert await client.simple_reply() == (1, Errno.EINVAL, b"")
            await client.send(Cmd.READ, 0, 1)
            assert await client.simple_reply() == (2, 0, b"\0")


AT_MOST_1_MIB = replace(PLAIN, block_sizes=BlockSizes(1, 4096, MIB))


@pytest.mark.parametrize("command", [Cmd.WRITE, Cmd.BLOCK_STATUS, Cmd.TRIM, 99])
async def test_a_payload_above_the_maximum_closes(command: int) -> None:
    """ "A server SHOULD initiate hard disconnect"; what was under way before is answered."""
    said: list[str] = []
    server = Server({"": MemoryDisk(SIZE)}, AT_MOST_1_MIB, log=said.append)
    async with connected(server) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        cookie = await client.send(Cmd.READ, 0, 512)
        await client.send(command, 0, MIB + 1, flags=MARKED)
        assert (await client.reply(cookie))[0].data == bytes(512)
        assert await client.rest() == b""
    assert len(said) == 1


async def test_a_payload_of_the_maximum_does_not() -> None:
    data = random.Random(1).randbytes(MIB)
    async with connected(memory(AT_MOST_1_MIB)) as client:
        await client.go(extended=True, contexts=[ALLOCATION])
        assert await client.error(Cmd.WRITE, 1, data=data) == 0
        assert await client.read(1, MIB) == data
        for command in (Cmd.BLOCK_STATUS, Cmd.TRIM, 99):
            assert await client.error(command, 0, data=data) == Errno.EINVAL
        # Nor does a WRITE that says nothing of a payload, as before extended headers.
        cookie = await client.send(Cmd.WRITE, 0, data=data + b"x", marked=False)
        assert (await client.reply(cookie))[0].error == Errno.EINVAL
        await alive(client)


# --- BLOCK_STATUS with a payload

TWO = replace(PLAIN, contexts=(ALLOCATION, BITMAP))


class WaitingDisk(MemoryDisk):
    """Has a task started for every command, so that a payload has to be kept."""

    immediate = False

    async def extents(self, offset: int, length: int) -> list[Extent]:
        await trio.lowlevel.checkpoint()
        return await super().extents(offset, length)


@pytest.mark.parametrize("disk", [MemoryDisk, WaitingDisk])
async def test_only_the_contexts_that_are_asked_for(disk: type[MemoryDisk]) -> None:
    async with connected(Server({"": disk(SIZE)}, TWO)) as client:
        await client.go(extended=True, contexts=[ALLOCATION, BITMAP])
        await client.ask(Cmd.WRITE, BLOCK_BYTES, data=b"x")
        kept = {
            0: [(BLOCK_BYTES, 3), (BLOCK_BYTES, 0), (BLOCK_BYTES, 3)],
            1: [(BLOCK_BYTES, 0), (BLOCK_BYTES, 1), (BLOCK_BYTES, 0)],
        }
        length = 3 * BLOCK_BYTES
        assert await client.status(0, length) == kept
        for ids in ([0], [1], [0, 1], [1, 0]):
            assert await client.status(0, length, ids) == {number: kept[number] for number in ids}
        one = await client.status(5, length - 5, [1], flags=CmdFlag.REQ_ONE)
        assert one == {1: [(BLOCK_BYTES - 5, 0)]}


@pytest.mark.parametrize(
    ("offset", "payload"),
    [
        (0, transmission.encode_status_payload(512, [2])),
        (0, transmission.encode_status_payload(512, [0, 2])),
        (0, transmission.encode_status_payload(512, [0, 0])),
        (0, transmission.encode_status_payload(512, [0, 1, 0])),
        (0, transmission.encode_status_payload(512, [])),
        (0, transmission.encode_status_payload(512, [0])[:-1]),
        (0, transmission.encode_status_payload(512, [0]) + b"\0"),
        (0, b"\0" * 7),
        (0, transmission.encode_status_payload(512, list(range(5000)))),
        (0, transmission.encode_status_payload(0, [0])),
        (0, transmission.encode_status_payload(SIZE + 1, [0])),
        (512, transmission.encode_status_payload(SIZE, [0])),
        (SIZE, transmission.encode_status_payload(1, [0])),
        (SIZE + 512, transmission.encode_status_payload(1, [0])),
        (2**64 - 1, transmission.encode_status_payload(2**64 - 1, [0])),
    ],
)
async def test_a_status_payload_that_is_wrong(offset: int, payload: bytes) -> None:
    async with connected(memory(TWO)) as client:
        await client.go(extended=True, contexts=[ALLOCATION, BITMAP])
        assert await client.error(Cmd.BLOCK_STATUS, offset, data=payload) == Errno.EINVAL
        assert set(await client.status(0, 512, [0])) == {0}


async def test_ids_of_contexts_that_were_not_selected_are_unknown() -> None:
    async with connected(memory(TWO)) as client:
        await client.go(extended=True, contexts=[BITMAP])
        assert set(await client.status(0, 512)) == {1}
        assert set(await client.status(0, 512, [1])) == {1}
        payload = transmission.encode_status_payload(512, [0])
        assert await client.error(Cmd.BLOCK_STATUS, 0, data=payload) == Errno.EINVAL


@pytest.mark.parametrize("contexts", [[], [ALLOCATION]])
async def test_a_server_without_the_payload_form(contexts: list[str]) -> None:
    """ "MUST gracefully consume the client's payload before failing with NBD_EINVAL"."""
    async with connected(memory(replace(PLAIN, extended_flags=0))) as client:
        await client.go(extended=True, contexts=contexts)
        payload = transmission.encode_status_payload(512, [0])
        assert await client.error(Cmd.BLOCK_STATUS, 0, data=payload) == Errno.EINVAL
        error = await client.error(Cmd.BLOCK_STATUS, 0, 512)
        assert error == (0 if contexts else Errno.EINVAL)


# --- Knobs


@pytest.mark.parametrize("extended", [True, False])
async def test_an_enforced_minimum_holds_for_every_command(extended: bool) -> None:
    blocks = replace(PLAIN, block_sizes=BlockSizes(4096, 4096, MIB))
    async with connected(memory(blocks)) as client:
        told = await client.go(extended=extended, contexts=[ALLOCATION])
        assert told.block_sizes == blocks.block_sizes
        for command in (
            Cmd.READ,
            Cmd.WRITE,
            Cmd.TRIM,
            Cmd.CACHE,
            Cmd.WRITE_ZEROES,
            Cmd.BLOCK_STATUS,
        ):
            for offset, length, error in [
                (4096, 8192, 0),
                (4096, 512, Errno.EINVAL),
                (512, 4096, Errno.EINVAL),
            ]:
                data = bytes(length) if command is Cmd.WRITE else b""
                assert await client.error(command, offset, length, data=data) == error
        if extended:
            for offset, length, error in [(4096, 4096, 0), (4096, 1, 22), (1, 4096, 22)]:
                data = transmission.encode_status_payload(length, [0])
                assert await client.error(Cmd.BLOCK_STATUS, offset, data=data) == error


@pytest.mark.parametrize(
    ("missing", "command", "flags", "length"),
    [
        (Flag.SEND_FUA, Cmd.WRITE, CmdFlag.FUA, 512),
        (Flag.SEND_FLUSH, Cmd.FLUSH, 0, 0),
        (Flag.SEND_TRIM, Cmd.TRIM, 0, 512),
        (Flag.SEND_CACHE, Cmd.CACHE, 0, 512),
        (Flag.SEND_WRITE_ZEROES, Cmd.WRITE_ZEROES, 0, 512),
        (Flag.SEND_FAST_ZERO, Cmd.WRITE_ZEROES, CmdFlag.FAST_ZERO, 512),
        (Flag.SEND_DF, Cmd.READ, CmdFlag.DF, 512),
    ],
)
async def test_what_a_server_may_lack(missing: Flag, command: Cmd, flags: int, length: int) -> None:
    data = bytes(length) if command is Cmd.WRITE else b""
    for personality, error in [
        (PLAIN, 0),
        (replace(PLAIN, flags=lacking(missing)), Errno.EINVAL),
        (replace(PLAIN, flags=lacking(missing, Flag.CAN_MULTI_CONN)), Errno.EINVAL),
    ]:
        async with connected(memory(personality)) as client:
            told = await client.go(extended=True)
            assert told.export is not None
            assert bool(told.export.flags & missing) == (error == 0)
            assert await client.error(command, 0, length, flags=flags, data=data) == error
            await alive(client)


def test_fast_zero_goes_with_write_zeroes() -> None:
    flags = lacking(Flag.SEND_WRITE_ZEROES)(MemoryDisk(SIZE), True)
    assert not flags & (Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO)
    assert flags & Flag.SEND_FUA


async def test_a_fault_can_repeat_the_wrong_offset() -> None:
    def at_0(_request: Request, reply: list[bytes]) -> Iterable[bytes]:
        return [chunk[:16] + bytes(8) + chunk[24:] for chunk in reply]

    async with connected(Server({"": MemoryDisk(SIZE)}, faults=Faults(on_reply=at_0))) as client:
        await client.go(extended=True)
        cookie = await client.send(Cmd.READ, 4096, 512)
        found, chunk = await client.chunk()
        assert (found, client.echo, chunk.offset) == (cookie, 0, 4096)


# --- Garbage

NUMBERS = st.sampled_from([0, 1, 8, 12, 16, 512, SIZE, 2**31, 2**32, 2**63, 2**64 - 1])
REQUESTS = st.builds(
    EXTENDED.encode_request,
    st.sampled_from([*Cmd, 8, 99]),
    st.integers(0, 63) | st.sampled_from([0, MARKED]),
    st.just(1),
    NUMBERS,
    NUMBERS,
)
OPENING = handshake.CLIENT_FLAGS.pack(3) + b"".join(
    [
        handshake.encode_option(Opt.EXTENDED_HEADERS),
        handshake.encode_option(
            Opt.SET_META_CONTEXT, handshake.encode_meta_query("", [ALLOCATION, BITMAP])
        ),
        handshake.encode_option(Opt.GO, handshake.encode_info_request("", ())),
    ]
)


@given(garbage=st.lists(REQUESTS | st.binary(max_size=40), max_size=8).map(b"".join))
def test_garbage_never_raises(garbage: bytes) -> None:
    trio.run(_feed, OPENING + garbage)


async def _feed(conversation: bytes) -> None:
    ours, theirs = socket_pair()
    await ours.send_all(conversation)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory(TWO).serve, theirs)
        async with ours:
            await ours.send_eof()
            try:
                while await ours.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass


async def test_a_client_that_vanishes_anywhere() -> None:
    """Between any two bytes of a conversation."""
    conversation = OPENING + EXTENDED.encode_request(Cmd.BLOCK_STATUS, MARKED, 1, 0, 12)
    conversation += transmission.encode_status_payload(512, [1])
    for length in range(len(conversation) + 1):
        ours, theirs = socket_pair()
        await ours.send_all(conversation[:length])
        await ours.aclose()
        await memory(TWO).serve(theirs)
