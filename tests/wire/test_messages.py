"""Round trips of every message, and a row for each way that one can be wrong."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import handshake, limits, transmission
from gateway.wire.constants import Chunk, Cmd, Opt, Rep, name_of
from gateway.wire.errors import WireError
from gateway.wire.framing import EXTENDED, STRUCTURED, Framing
from gateway.wire.handshake import (
    AnyInfo,
    BlockSizes,
    DescriptionInfo,
    ExportInfo,
    InfoRequest,
    ListedExport,
    MetaContext,
    MetaQuery,
    NameInfo,
    UnknownInfo,
)
from gateway.wire.transmission import ErrorChunk

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)
infos: st.SearchStrategy[AnyInfo] = st.one_of(
    st.builds(ExportInfo, u64, u16),
    st.builds(NameInfo, names),
    st.builds(DescriptionInfo, names),
    st.builds(BlockSizes, u32, u32, u32),
    st.builds(UnknownInfo, st.integers(4, 2**16 - 1)),
)


@given(names, st.frozensets(u16, max_size=8))
def test_info_request(name: str, wanted: frozenset[int]) -> None:
    data = handshake.encode_info_request(name, wanted)
    assert handshake.decode_info_request(data) == InfoRequest(name, wanted)


@given(names, st.lists(names, max_size=5))
def test_meta_query(name: str, queries: list[str]) -> None:
    data = handshake.encode_meta_query(name, queries)
    assert handshake.decode_meta_query(data) == MetaQuery(name, tuple(queries))


@given(names, names)
def test_server(name: str, description: str) -> None:
    export = ListedExport(name, description)
    assert handshake.decode_server(handshake.encode_server(export)) == export


def test_a_description_that_is_no_string_is_none() -> None:
    assert handshake.decode_server(b"\0\0\0\1a\xff") == ListedExport("a")
    assert handshake.decode_server(b"\0\0\0\1ax" + LONGEST) == ListedExport("a")


@given(u32, names.filter(bool))
def test_meta_context(number: int, name: str) -> None:
    context = MetaContext(number, name)
    assert handshake.decode_meta_context(handshake.encode_meta_context(context)) == context


@given(infos)
def test_info(info: AnyInfo) -> None:
    assert handshake.decode_info(handshake.encode_info(info)) == info


@given(u64, u32.filter(bool), names, st.one_of(st.none(), u64), st.booleans())
def test_error_chunk(cookie: int, error: int, text: str, offset: int | None, done: bool) -> None:
    chunk = transmission.encode_error_chunk(cookie, error, text, offset=offset, done=done)
    magic, flags, kind, back, size = struct.unpack_from(">IHHQI", chunk)
    assert (magic, flags, back, size) == (0x668E33EF, done, cookie, len(chunk) - 20)
    assert transmission.decode_error_chunk(kind, chunk[20:]) == ErrorChunk(error, text, offset)


@given(u64, u32, st.lists(st.tuples(u32, u32), min_size=1, max_size=9), st.booleans())
def test_status_chunk(
    cookie: int, context: int, extents: list[tuple[int, int]], done: bool
) -> None:
    chunk = STRUCTURED.status(cookie, 0, context, extents, done=done)
    assert struct.unpack_from(">IHHQ", chunk) == (0x668E33EF, done, 5, cookie)
    decoded, told = transmission.decode_extents(chunk[20:])
    assert (decoded, list(told)) == (context, extents)


@pytest.mark.parametrize("framing", [STRUCTURED, EXTENDED], ids=str)
def test_no_more_extents_are_looked_at_than_are_useful(framing: Framing) -> None:
    decode, head = transmission.decode_extents, 20
    if framing is EXTENDED:
        decode, head = transmission.decode_extended_extents, 32
    most = transmission.MAX_DECODED_EXTENTS
    for count in (most - 1, most, most + 1, 2 * most):
        extents = [(number + 1, number % 4) for number in range(count)]
        chunk = framing.status(1, 0, 7, extents, done=True)
        context, told = decode(chunk[head:])
        assert (context, list(told)) == (7, extents[:most])


@given(st.binary(max_size=64))
def test_decoding_gives_a_value_or_wire_error(data: bytes) -> None:
    decoders: list[Callable[[bytes], object]] = [
        handshake.decode_info_request,
        handshake.decode_meta_query,
        handshake.decode_server,
        handshake.decode_meta_context,
        handshake.decode_info,
        handshake.decode_error_text,
        transmission.decode_extents,
        lambda payload: transmission.decode_error_chunk(0x8001, payload),
        lambda payload: transmission.decode_error_chunk(0x8002, payload),
        lambda payload: transmission.decode_error_chunk(0x8009, payload),
    ]
    for decode in decoders:
        with contextlib.suppress(WireError):
            decode(data)


EXACT = [
    (handshake.encode_greeting(3), b"NBDMAGICIHAVEOPT\0\3"),
    (
        handshake.encode_oldstyle_greeting(2**20, 0x103),
        b"NBDMAGIC\0\0\x42\2\x81\x86\x12\x53" + (2**20).to_bytes(8) + b"\0\0\1\3" + bytes(124),
    ),
    (handshake.encode_option(7, b"ab"), b"IHAVEOPT\0\0\0\7\0\0\0\2ab"),
    (
        handshake.encode_option_reply(3, 0x80000001, b"no"),
        b"\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\3\x80\0\0\1\0\0\0\2no",
    ),
    (handshake.encode_export_name_reply(5, 1, zeroes=False), bytes(7) + b"\5\0\1"),
    (handshake.encode_export_name_reply(5, 1, zeroes=True), bytes(7) + b"\5\0\1" + bytes(124)),
    (
        transmission.encode_request(1, 1, 2, 3, 4, b"data"),
        b"\x25\x60\x95\x13\0\1\0\1" + bytes(7) + b"\2" + bytes(7) + b"\3\0\0\0\4data",
    ),
    (transmission.DISC, b"\x25\x60\x95\x13\0\0\0\2" + bytes(20)),
    (transmission.encode_simple_reply(9, 5), b"\x67\x44\x66\x98\0\0\0\5" + bytes(7) + b"\x09"),
    (
        transmission.encode_chunk(9, 0),
        b"\x66\x8e\x33\xef\0\1\0\0" + bytes(7) + b"\x09\0\0\0\0",
    ),
    (
        STRUCTURED.data_head(9, 0, 512, 16, done=False),
        b"\x66\x8e\x33\xef\0\0\0\1" + bytes(7) + b"\x09\0\0\0\x18" + (512).to_bytes(8),
    ),
    (
        STRUCTURED.hole(9, 0, 512, 16, done=True),
        b"\x66\x8e\x33\xef\0\1\0\2"
        + bytes(7)
        + b"\x09\0\0\0\x0c"
        + (512).to_bytes(8)
        + b"\0\0\0\x10",
    ),
]


@pytest.mark.parametrize(("encoded", "expected"), EXACT)
def test_bytes_on_the_wire(encoded: bytes, expected: bytes) -> None:
    assert encoded == expected


def test_error_text_is_cut_between_characters() -> None:
    chunk = transmission.encode_error_chunk(1, 5, "x" + "é" * 600)
    assert transmission.decode_error_chunk(0x8001, chunk[20:]).text == "x" + "é" * 449
    assert handshake.decode_error_text(b"\xff\0" + b"y" * 2000) == "\ufffd" + "y" * 898


LONGEST = b"x" * limits.MAX_STRING_BYTES
WRONG = [
    (handshake.decode_info_request, b"", "cut off after 0 of 4"),
    (handshake.decode_info_request, b"\0\0\0", "cut off after 3 of 4"),
    (handshake.decode_info_request, b"\0\0\0\2a", "claims 2 bytes, but only 1"),
    (handshake.decode_info_request, b"\xff\xff\xff\xff", "claims 4294967295"),
    (handshake.decode_info_request, b"\0\0\0\1a\0", "number of information requests"),
    (handshake.decode_info_request, b"\0\0\0\1a\0\1", "take 2 bytes, but 0"),
    (handshake.decode_info_request, b"\0\0\0\1a\0\0\0", "take 0 bytes, but 1"),
    (handshake.decode_info_request, b"\0\0\0\1\0\0\0", "NUL"),
    (handshake.decode_info_request, b"\0\0\0\1\xff\0\0", "not UTF-8"),
    (handshake.decode_info_request, b"\0\0\x10\1x" + LONGEST + b"\0\0", "4097 bytes"),
    (handshake.decode_meta_query, b"\0\0\0\0\0\0\0", "number of queries is missing"),
    (handshake.decode_meta_query, bytes(4) + b"\0\0\1\1", "257 queries"),
    (handshake.decode_meta_query, bytes(4) + b"\0\0\0\1", "length of query 1"),
    (handshake.decode_meta_query, bytes(4) + b"\0\0\0\2" + bytes(4), "length of query 2"),
    (handshake.decode_meta_query, bytes(9), "1 bytes stand behind"),
    (handshake.decode_server, b"\0\0\0\2a", "a listed export claims 2"),
    (handshake.decode_server, b"\0\0\0\1\xff", "name of a listed export is not UTF-8"),
    (handshake.decode_server, b"\0\0\x10\1" + b"x" + LONGEST, "4097"),
    (handshake.decode_meta_context, b"\0\0\0\1", "of 4 bytes"),
    (handshake.decode_meta_context, b"\0\0\0\1\0", "NUL"),
    (handshake.decode_info, b"\0", "its type alone takes 2"),
    (handshake.decode_info, bytes(11), "INFO_EXPORT has 11"),
    (handshake.decode_info, bytes(13), "INFO_EXPORT has 13"),
    (handshake.decode_info, b"\0\3" + bytes(11), "INFO_BLOCK_SIZE has 13"),
    (handshake.decode_info, b"\0\1\xff", "canonical name is not UTF-8"),
    (handshake.decode_info, b"\0\2a\0", "description contains a NUL"),
    (transmission.decode_extents, b"", "of 0 bytes"),
    (transmission.decode_extents, bytes(4), "of 4 bytes"),
    (transmission.decode_extents, bytes(13), "of 13 bytes"),
]


@pytest.mark.parametrize(("decode", "data", "says"), WRONG)
def test_wrong(decode: Callable[[bytes], object], data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode(data)


@pytest.mark.parametrize(
    ("kind", "payload", "says"),
    [
        (0x8001, bytes(5), "of 5 bytes"),
        (0x8001, b"\0\0\0\5\0\1", "claims 1 bytes where 0"),
        (0x8001, b"\0\0\0\5\0\0x", "claims 0 bytes where 1"),
        (0x8001, bytes(6), "error 0"),
        (0x8002, b"\0\0\0\5\0\0", "where -8 stand"),
        (0x8002, b"\0\0\0\5\0\0" + bytes(9), "where 1 stand"),
        (0x8009, b"\0\0\0\5\0\4abc", "claims 4"),
    ],
)
def test_wrong_error_chunks(kind: int, payload: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        transmission.decode_error_chunk(kind, payload)


def test_an_unknown_error_chunk_keeps_its_tail() -> None:
    chunk = transmission.decode_error_chunk(0x8009, b"\0\0\0\5\0\2ab and more")
    assert chunk == ErrorChunk(5, "ab", None)


def test_for_people() -> None:
    assert handshake.shown("disk") == "'disk'"
    assert handshake.shown("\n" * 500) == repr("\n" * 80 + "…")
    assert handshake.refusal_sentence(7, Rep.ERR_POLICY, "") == "GO was refused with ERR_POLICY"
    assert name_of(Cmd, 6) == "WRITE_ZEROES"
    assert name_of(Opt, 255) == "Opt 0xff"
    assert transmission.is_error(Chunk.ERROR_OFFSET)
    assert not transmission.is_error(Chunk.BLOCK_STATUS)
