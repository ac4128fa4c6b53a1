"""What is promised, and which commands are legal then, against rules written a second time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.commands import (
    carries_payload,
    legal_commands,
    longest,
    normal_error,
    refusal,
    subset_refusal,
)
from gateway.protocol.export import (
    Export,
    Offer,
    longest_payload,
    offer,
    offered_block_sizes,
    offered_flags,
    repaired,
    sane_block_sizes,
    usable_size,
    view_of,
)
from gateway.wire.constants import Cmd
from gateway.wire.handshake import BlockSizes, MetaContext

MIB = 2**20
(
    HAS_FLAGS,
    READ_ONLY,
    FLUSH,
    FUA,
    ROTATIONAL,
    TRIM,
    WRITE_ZEROES,
    DF,
    MULTI_CONN,
    RESIZE,
    CACHE,
    FAST_ZERO,
    PAYLOAD,
) = (1 << bit for bit in range(13))


def specified(upstream: int, client: str) -> int:
    """The flag algebra, bit by bit."""
    writable = not upstream & READ_ONLY
    promised = {
        HAS_FLAGS: True,
        READ_ONLY: not writable,
        FLUSH: upstream & FLUSH,
        FUA: upstream & (FUA | FLUSH),
        ROTATIONAL: upstream & ROTATIONAL,
        TRIM: writable and upstream & TRIM,
        WRITE_ZEROES: writable,
        DF: client != "simple",
        MULTI_CONN: upstream & MULTI_CONN,
        RESIZE: False,
        CACHE: upstream & CACHE,
        FAST_ZERO: writable and upstream & WRITE_ZEROES and upstream & FAST_ZERO,
        PAYLOAD: client == "extended",
    }
    return sum(bit for bit, yes in promised.items() if yes)


@pytest.mark.parametrize("client", ["simple", "structured", "extended"])
def test_offered_flags(client: str) -> None:
    structured, extended = client != "simple", client == "extended"
    for upstream in range(2**13):
        export = Export(MIB, upstream)
        promised = offered_flags(view_of(export).flags, structured=structured, extended=extended)
        assert promised == specified(upstream, client), hex(upstream)


@pytest.mark.parametrize("bit", [13, 14, 15])
def test_bits_without_a_name_are_never_offered(bit: int) -> None:
    export = Export(MIB, 1 << bit | HAS_FLAGS)
    assert offered_flags(view_of(export).flags, structured=False) == HAS_FLAGS | WRITE_ZEROES


def test_offer() -> None:
    here, gone = MetaContext(3, "base:allocation"), MetaContext(4, "x:gone")
    export = Export(MIB, FLUSH, structured=True, contexts=(MetaContext(9, "base:allocation"),))
    promised = offer(view_of(export), structured=True, selected=(here, gone))
    assert promised.contexts == (here,)
    assert (promised.longest_payload, promised.alignment) == (64 * MIB, 1)
    assert promised.block_sizes == BlockSizes(1, 4096, 32 * MIB)
    said = BlockSizes(512, 4096, MIB)
    promised = offer(view_of(Export(MIB, 0, said)), structured=False)
    assert promised.block_sizes == offered_block_sizes(said) == said
    picky = view_of(Export(MIB, 0, said), any_alignment=False)
    assert offer(picky, structured=False).alignment == 512
    assert (promised.longest_payload, promised.alignment) == (64 * MIB, 1)


@pytest.mark.parametrize("maximum", [64 * MIB, 64 * MIB + 1, 128 * MIB, 2**32 - 1])
def test_no_maximum_is_told_that_would_be_refused(maximum: int) -> None:
    export = Export(MIB, 0, BlockSizes(512, 4096, maximum))
    promised = offer(view_of(export), structured=False)
    assert promised.block_sizes == BlockSizes(512, 4096, 64 * MIB)
    assert promised.longest_payload == 64 * MIB


def test_what_is_told_of_block_sizes_makes_sense_where_they_are_larger_than_a_request() -> None:
    said = BlockSizes(512, 128 * MIB, 2**32 - 1)
    assert sane_block_sizes(said) == said
    told = offer(view_of(Export(MIB, 0, said)), structured=False).block_sizes
    assert told == sane_block_sizes(told) == BlockSizes(512, 64 * MIB, 64 * MIB)


def test_blocks_are_told_as_they_are_whoever_sees_to_them() -> None:
    """A gateway behind this one sees to requests of any alignment: nothing is put together here."""
    said = BlockSizes(4096, 4096, MIB)
    for any_alignment in (True, False):
        export = Export(MIB, 0, said, any_alignment=True)
        assert (export.minimum, export.stated_minimum) == (1, 4096)
        told = offer(view_of(export, any_alignment=any_alignment), structured=False)
        assert told.block_sizes == said
        assert told.alignment == (1 if any_alignment else 4096)


def test_repaired() -> None:
    export = Export(MIB, MULTI_CONN | FLUSH)
    one, other = (
        repaired(export, clear=bit, add=CACHE, unstated_minimum=512) for bit in (MULTI_CONN, CACHE)
    )
    assert (one.flags, other.flags) == (FLUSH | CACHE, MULTI_CONN | FLUSH | CACHE)
    assert one.minimum == 512
    assert replace(one, block_sizes=BlockSizes(1, 4096, MIB)).minimum == 1  # it was told


@pytest.mark.parametrize(
    ("minimum", "preferred", "maximum", "sane"),
    [
        (1, 4096, 32 * MIB, True),
        (512, 512, 512, True),
        (1, 512, 512, True),
        (65536, 65536, 2 * MIB, True),
        (512, 4096, 0xFFFFFFFF, True),
        (1, 4096, 4097, True),
        (4096, 4096, 12288, True),
        (0, 4096, MIB, False),
        (3, 4096, MIB, False),
        (131072, 131072, MIB, False),
        (512, 0, MIB, False),
        (512, 256, MIB, False),
        (1, 256, MIB, False),
        (1, 3000, MIB, False),
        (8192, 4096, MIB, False),
        (512, 4096, 0, False),
        (512, 4096, 2048, False),
        (512, 4096, MIB + 1, False),
        (2, 4096, 0xFFFFFFFE, True),
        (4, 4096, 0xFFFFFFFE, False),
    ],
)
def test_sane_block_sizes(minimum: int, preferred: int, maximum: int, sane: bool) -> None:
    said = BlockSizes(minimum, preferred, maximum)
    assert sane_block_sizes(said) == (said if sane else None)


def test_nothing_said_of_block_sizes() -> None:
    assert sane_block_sizes(None) is None


@pytest.mark.parametrize(
    ("size", "minimum", "usable"),
    [(1000, None, 1000), (1000, 1, 1000), (1000, 512, 512), (1024, 512, 1024), (100, 512, 0)],
)
def test_usable_size(size: int, minimum: int | None, usable: int) -> None:
    sizes = BlockSizes(minimum, 4096, MIB) if minimum else None
    assert usable_size(size, sizes) == usable


# --- Commands


def promise(
    flags: int,
    *,
    sizes: BlockSizes | None = None,
    contexts: bool = False,
    size: int = 64 * MIB,
    extended: bool = False,
) -> Offer:
    return Offer(
        size,
        flags,
        sizes or BlockSizes(1, 4096, 32 * MIB),
        True,
        (MetaContext(1, "base:allocation"),) if contexts else (),
        longest_payload(sizes),
        sizes.minimum if sizes else 1,
        extended,
    )


def may(flags: int, contexts: bool, command: int, given: int, *, extended: bool = False) -> bool:
    """Whether a command with flags is legal."""
    if flags & READ_ONLY and command in (1, 4, 6):
        return False
    there = {
        0: True,
        1: True,
        3: flags & FLUSH,
        4: flags & TRIM,
        5: flags & CACHE,
        6: flags & WRITE_ZEROES,
        7: contexts,
    }.get(command, False)
    allowed = 0
    if flags & FUA or command == 3:
        allowed |= 1
    if command == 6:
        allowed |= 2
        if flags & FAST_ZERO:
            allowed |= 16
    if command == 0 and flags & DF:
        allowed |= 4
    if command == 7:
        allowed |= 8
    if extended and (command == 1 or (command == 7 and flags & PAYLOAD)):
        allowed |= 32
    return bool(there) and given | allowed == allowed


@pytest.mark.parametrize("extended", [False, True])
def test_legality_of_every_word(extended: bool) -> None:
    # BLOCK_STATUS_PAYLOAD stands in an offer only with extended headers, but may be missing there too.
    bits = (READ_ONLY, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, CACHE, FAST_ZERO)
    for chosen in itertools.product((0, 1), repeat=len(bits)):
        flags = sum(bit for bit, yes in zip(bits, chosen, strict=True) if yes)
        for contexts, payload in itertools.product((False, True), (0, PAYLOAD)):
            rules = legal_commands(promise(flags | payload, contexts=contexts, extended=extended))
            legal = {
                given << 16 | command
                for command in range(9)
                if command != Cmd.DISC
                for given in range(64)
                if may(flags | payload, contexts, command, given, extended=extended)
            }
            assert set(rules) == legal
            for word, rule in rules.items():
                fua = word >> 16 & 1 if word & 0xFFFF in (1, 4, 6) else 0
                # PAYLOAD_LEN is never passed on: it belongs to the framing of each side.
                assert rule.flags == (word >> 16 & ~(1 | 32)) | fua
                assert rule.command == word & 0xFFFF


ALL = FLUSH | FUA | TRIM | WRITE_ZEROES | DF | CACHE | FAST_ZERO


@given(
    st.integers(0, 2**13 - 1),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
    st.one_of(st.integers(0, 63), st.integers(0, 2**16 - 1)),
    st.sampled_from([0, 512, 64 * MIB - 512, 64 * MIB, 2**64 - 1]),
    st.sampled_from([0, 1, 8, 11, 12, 16, 512, 2**32 - 1, 2**64 - 1]),
)
def test_refusal_agrees_with_legality(
    flags: int,
    contexts: bool,
    extended: bool,
    command: int,
    given: int,
    offset: int,
    length: int,
) -> None:
    promised = promise(flags, contexts=contexts, extended=extended)
    word = given << 16 | command
    refused = refusal(promised, word, offset, length)
    if word not in legal_commands(promised):
        assert refused is not None
    elif command == 3:
        assert (refused is None) == (not offset and not length)
    elif command == 7 and given & 32:
        # Its range stands in the payload; the one context takes 12 bytes.
        assert (refused is None) == (length == 12)
    else:
        outside = offset + length > promised.size
        assert (refused is None) == (not outside and not (command == 7 and not length))
    if refused is not None:
        assert refused.error in (1, 22, 28)
        assert refused.text


def test_a_range_that_is_too_far_is_told_as_one() -> None:
    refused = refusal(promise(ALL, extended=False), 0, 64 * MIB, 512)
    assert refused is not None
    assert refused.text == "READ of 512 bytes at 67108864 ends beyond the export's 67108864 bytes"


@pytest.mark.parametrize(
    ("extended", "word", "carries"),
    [
        (False, 1, True),
        (True, 1, True),  # without PAYLOAD_LEN, as qemu's client has it (Q-C1)
        (True, 32 << 16 | 1, True),
        (True, 32 << 16 | 7, True),
        (True, 32 << 16 | 4, True),  # legal or not
        (True, 32 << 16 | 99, True),
        (True, 7, False),
        (False, 32 << 16 | 4, False),  # "In the compact style" only WRITE has one
    ],
)
def test_what_carries_a_payload(extended: bool, word: int, carries: bool) -> None:
    assert carries_payload(promise(ALL, extended=extended), word) == carries


@pytest.mark.parametrize(
    ("offset", "length", "ids", "legal"),
    [
        (0, 4096, (1,), True),
        (4096, 64 * MIB - 4096, (1,), True),
        (0, 4096, (2,), False),
        (0, 4096, (1, 1), False),
        (0, 4096, (1, 2), False),
        (0, 0, (1,), False),
        (0, 512, (1,), False),
        (512, 4096, (1,), False),
        (4096, 64 * MIB, (1,), False),
        (64 * MIB, 4096, (1,), False),
        (2**64 - 4096, 2**64 - 4096, (1,), False),
    ],
)
def test_what_a_status_payload_may_say(
    offset: int, length: int, ids: tuple[int, ...], legal: bool
) -> None:
    sizes = BlockSizes(4096, 4096, MIB)
    promised = promise(ALL | PAYLOAD, sizes=sizes, contexts=True, extended=True)
    refused = subset_refusal(promised, offset, length, ids)
    assert (refused is None) == legal
    assert refused is None or refused.error == 22


@pytest.mark.parametrize(
    ("extended", "sizes", "command", "most"),
    [
        (False, None, Cmd.READ, 64 * MIB),
        (False, BlockSizes(1, 4096, 0xFFFFFFFF), Cmd.WRITE, 64 * MIB),
        (False, BlockSizes(1, 4096, MIB), Cmd.READ, MIB),
        (False, BlockSizes(1, 4096, 128 * MIB), Cmd.WRITE, 64 * MIB),
        (False, BlockSizes(1, 4096, MIB), Cmd.TRIM, 2**32 - 1),
        (False, BlockSizes(1, 4096, MIB), Cmd.BLOCK_STATUS, 2**32 - 1),
        (True, None, Cmd.READ, 64 * MIB),
        (True, BlockSizes(1, 4096, MIB), Cmd.WRITE, MIB),
        (True, BlockSizes(1, 4096, MIB), Cmd.TRIM, 2**63 - 1),
        (True, None, Cmd.WRITE_ZEROES, 2**63 - 1),
        (True, None, Cmd.CACHE, 2**63 - 1),
        (True, None, Cmd.BLOCK_STATUS, 2**63 - 1),
    ],
)
def test_longest(extended: bool, sizes: BlockSizes | None, command: Cmd, most: int) -> None:
    promised = promise(ALL, sizes=sizes, size=2**63 - 1, contexts=True, extended=extended)
    assert longest(promised, command) == most
    assert refusal(promised, command, 0, most) is None
    if most < 2**32 - 1:
        refused = refusal(promised, command, 0, most + 1)
        assert refused is not None
        assert refused.error == 22


READ, WRITE, FLUSHING, TRIMMING, ZEROING, STATUS = 0, 1, 3, 4, 6, 7
READ_DF, FAST = 4 << 16, 16 << 16 | 6
ERRORS = [
    # as sent, word, as told
    *[(error, word, error) for error in (1, 5, 12, 22, 28, 108) for word in (READ, WRITE, FAST)],
    (30, WRITE, 1),
    (13, READ, 1),
    (27, WRITE, 28),
    (122, WRITE, 28),
    (75, READ, 22),
    (75, WRITE, 22),
    (75, READ_DF, 75),
    (75, TRIMMING, 75),
    (75, STATUS, 75),
    (95, ZEROING, 22),
    (95, FAST, 95),
    (95, 17 << 16 | 6, 95),
    (95, READ, 22),
    (95, TRIMMING, 22),
    (95, 16 << 16 | 1, 22),
    (2, READ, 5),
    (2, WRITE, 5),
    (2, FLUSHING, 22),
    (2, ZEROING, 22),
    (2**32 - 1, STATUS, 22),
    (2**32 - 1, READ_DF, 5),
]


@pytest.mark.parametrize(("sent", "word", "told"), ERRORS)
def test_normal_error(sent: int, word: int, told: int) -> None:
    assert normal_error(word, sent) == told
