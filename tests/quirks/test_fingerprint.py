"""Which program the evidence of each known server is taken for."""

from __future__ import annotations

import pytest

from gateway.protocol.client_role import Style
from gateway.quirks import Evidence
from gateway.quirks.fingerprint import identify
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes

MIB = 2**20
BASIC = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES
QEMU_SIZES, LARGE_SIZES = BlockSizes(1, 4096, 32 * MIB), BlockSizes(4096, 4096, 32 * MIB)
REQUIRED = Rep.ERR_BLOCK_SIZE_REQD
ALLOCATION, BITMAP, DEPTH = "base:allocation", "qemu:dirty-bitmap:a", "qemu:allocation-depth"


def seen(
    flags: int,
    sizes: BlockSizes | None = QEMU_SIZES,
    unasked: int | None = Rep.ACK,
    *,
    structured: bool = True,
    info: bool = True,
    style: Style = Style.FIXED_NEWSTYLE,
) -> Evidence:
    return Evidence(style, flags, sizes, unasked, structured=structured, info_known=info)


CACHE, MULTI, FAST = Flag.SEND_CACHE, Flag.CAN_MULTI_CONN, Flag.SEND_FAST_ZERO
KNOWN = [
    ("qemu", ">=2.10,<2.11", seen(BASIC, unasked=REQUIRED, structured=False), ()),
    ("qemu", ">=2.11,<2.12", seen(BASIC, unasked=REQUIRED), ()),
    ("qemu", ">=2.12,<3.0", seen(BASIC, unasked=REQUIRED), (ALLOCATION,)),
    ("qemu", ">=3.0.0,<3.0.1", seen(BASIC | MULTI, unasked=REQUIRED), (ALLOCATION, BITMAP)),
    ("qemu", ">=3.0.1,<4.0", seen(BASIC | CACHE, unasked=REQUIRED), (ALLOCATION, BITMAP)),
    ("qemu", ">=3.0.1,<4.0", seen(BASIC | CACHE, unasked=REQUIRED), (ALLOCATION,)),  # 3.1.0
    ("qemu", ">=4.0,<8.2", seen(BASIC | CACHE), (ALLOCATION,)),
    ("qemu", ">=4.2,<8.2", seen(BASIC | CACHE | FAST), (ALLOCATION,)),
    ("qemu", ">=4.2,<8.2", seen(Flag.HAS_FLAGS | Flag.READ_ONLY | CACHE | MULTI), (ALLOCATION,)),
    ("qemu", ">=5.2,<8.2", seen(BASIC | CACHE | FAST), (ALLOCATION, DEPTH)),
    ("qemu", ">=7.1,<8.2", seen(BASIC | CACHE | FAST | MULTI), (ALLOCATION,)),
    (
        "qemu",
        ">=7.1,<8.2",
        seen(BASIC | CACHE | FAST | MULTI, LARGE_SIZES, REQUIRED),
        (ALLOCATION,),
    ),
    ("nbdkit", ">=1.12", seen(BASIC | CACHE | FAST | MULTI, LARGE_SIZES), (ALLOCATION,)),
    ("nbdkit", ">=1.12", seen(BASIC | CACHE | FAST | MULTI, None), (ALLOCATION,)),
    ("nbdkit", ">=1.12", seen(BASIC, BlockSizes(4096, 4096, 2**32 - 1)), (ALLOCATION,)),
    ("nbd-server", ">=3.15,<3.25", seen(BASIC | MULTI, None, structured=False), ()),
    ("nbd-server", ">=3.25", seen(BASIC | MULTI | Flag.SEND_DF, None), ()),
    (
        "qemu",
        ">=3.0.0,<3.0.1",
        seen(BASIC | MULTI, None, None, info=False, style=Style.OLDSTYLE),
        (),
    ),
    ("unknown", "", seen(BASIC, None, None, info=False, style=Style.OLDSTYLE), ()),
    ("unknown", "", seen(BASIC, None, None, structured=False, info=False), ()),
    ("unknown", "", seen(BASIC, None, structured=False), ()),
]


@pytest.mark.parametrize(("name", "versions", "evidence", "contexts"), KNOWN)
def test_known_servers(
    name: str, versions: str, evidence: Evidence, contexts: tuple[str, ...]
) -> None:
    program = identify(evidence, extended=False, contexts=contexts)
    assert (program.name, program.versions) == (name, versions)
    assert bool(program.reasons) or name == "unknown"


def test_a_gateway_is_none_of_the_servers_behind_it() -> None:
    for _name, _versions, evidence, contexts in KNOWN:
        program = identify(evidence, extended=False, contexts=contexts, gateway="1.2.3")
        assert (program.name, program.versions) == ("nbd-gateway", "1.2.3")
        assert program.reasons


def test_extended_headers_are_young() -> None:
    program = identify(seen(BASIC | CACHE), extended=True, contexts=(ALLOCATION,))
    assert (program.name, program.versions) == ("qemu", ">=8.2")
