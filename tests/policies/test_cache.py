import pytest
from pydantic import ValidationError

from gateway.policy import Cmd, CmdFlag, Errno, Failed, Flag, Request
from policies.cache import Cache
from tests.policies.harness import EVERYTHING, MIB, Disk, configured, do, table, view

CACHE = Flag.SEND_CACHE
WITHOUT = EVERYTHING & ~CACHE


@pytest.mark.parametrize("read_only", [0, Flag.READ_ONLY])
@pytest.mark.parametrize(
    ("how", "flags", "offered", "hooked"),
    [
        ("native", EVERYTHING, EVERYTHING, set()),
        ("native", WITHOUT, WITHOUT, set()),
        ("none", EVERYTHING, WITHOUT, set()),
        ("none", WITHOUT, WITHOUT, set()),
        ("emulate", EVERYTHING, EVERYTHING, {Cmd.CACHE}),
        ("emulate", WITHOUT, EVERYTHING, {Cmd.CACHE}),
        ("nop", EVERYTHING, EVERYTHING, {Cmd.CACHE}),
        ("nop", WITHOUT, EVERYTHING, {Cmd.CACHE}),
    ],
)
def test_what_is_offered(
    how: str, flags: int, offered: int, hooked: set[Cmd], read_only: int
) -> None:
    policy = configured(Cache, {"how": how})
    seen = view(flags=flags | read_only)
    assert policy.describe(seen) == view(flags=offered | read_only)
    assert set(policy.hooked(seen)) == hooked
    assert not table(policy, seen).rows


@pytest.mark.parametrize(
    ("offset", "length", "pieces"),
    [
        (512, 0, []),
        (512, 1, [(512, 1)]),
        (0, MIB, [(0, MIB)]),
        (7, MIB + 1, [(7, MIB), (7 + MIB, 1)]),
        (512, 3 * MIB, [(512, MIB), (512 + MIB, MIB), (512 + 2 * MIB, MIB)]),
    ],
)
async def test_emulate(offset: int, length: int, pieces: list[tuple[int, int]]) -> None:
    disk = Disk(bytearray(4 * MIB))
    policy = configured(Cache, {"how": "emulate"})
    assert await do(policy, Request(Cmd.CACHE, offset, length, int(CmdFlag.FUA)), disk) is None
    assert disk.asked == [Request(Cmd.READ, *piece) for piece in pieces]


async def test_emulate_that_fails_stops() -> None:
    disk = Disk(bytearray(4 * MIB), fails={Cmd.READ: Errno.EIO})
    with pytest.raises(Failed) as caught:
        await do(configured(Cache, {"how": "emulate"}), Request(Cmd.CACHE, 0, 4 * MIB), disk)
    assert caught.value.error is Errno.EIO
    assert len(disk.asked) == 1


async def test_nop_does_nothing() -> None:
    disk = Disk()
    assert await do(configured(Cache, {"how": "nop"}), Request(Cmd.CACHE, 0, 512), disk) is None
    assert not disk.asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "how"),
        ({"how": "zero"}, "'native', 'none', 'emulate' or 'nop'"),
        ({"mode": ""}, "mode"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Cache, options)
    assert message in str(caught.value)
