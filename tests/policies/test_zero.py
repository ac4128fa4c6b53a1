import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.policy import Cmd, CmdFlag, Errno, Failed, Flag, Request, Result
from policies.zero import Zero
from tests.policies.harness import EVERYTHING, MIB, Disk, configured, do, refused, table, view

ZEROES, FAST = Flag.SEND_WRITE_ZEROES, Flag.SEND_FAST_ZERO
NO_FAST = EVERYTHING & ~FAST
NEITHER = NO_FAST & ~ZEROES
FUA, NO_HOLE, FAST_ZERO = CmdFlag.FUA, CmdFlag.NO_HOLE, CmdFlag.FAST_ZERO


@pytest.mark.parametrize(
    ("how", "fast", "everything", "no_fast", "neither"),
    [
        # What is offered of an export with both, with WRITE_ZEROES alone, and with neither.
        ("native", "default", EVERYTHING, NO_FAST, NEITHER),
        ("native", "none", NO_FAST, NO_FAST, NEITHER),
        ("native", "slow", EVERYTHING, EVERYTHING, NEITHER),
        ("native", "ignore", EVERYTHING, EVERYTHING, NEITHER),
        ("none", "default", NEITHER, NEITHER, NEITHER),
        ("none", "none", NEITHER, NEITHER, NEITHER),
        ("emulate", "default", EVERYTHING, EVERYTHING, EVERYTHING),
        ("emulate", "none", NO_FAST, NO_FAST, NO_FAST),
        ("emulate", "slow", EVERYTHING, EVERYTHING, EVERYTHING),
        ("emulate", "ignore", EVERYTHING, EVERYTHING, EVERYTHING),
        ("notrim", "default", EVERYTHING, NO_FAST, NEITHER),
        ("notrim", "none", NO_FAST, NO_FAST, NEITHER),
        ("notrim", "slow", EVERYTHING, EVERYTHING, NEITHER),
        ("notrim", "ignore", EVERYTHING, EVERYTHING, NEITHER),
    ],
)
def test_what_is_offered(how: str, fast: str, everything: int, no_fast: int, neither: int) -> None:
    policy = configured(Zero, {"how": how, "fast": fast})
    for flags, offered in ((EVERYTHING, everything), (NO_FAST, no_fast), (NEITHER, neither)):
        seen = view(flags=flags)
        assert policy.describe(seen) == view(flags=offered)
        assert set(policy.hooked(seen)) == ({Cmd.WRITE_ZEROES} if how == "emulate" else set())
    read_only = view(flags=NEITHER | Flag.READ_ONLY)
    assert policy.describe(read_only) == read_only
    assert not policy.hooked(read_only)


@pytest.mark.parametrize(
    ("how", "fast", "refuses", "passed"),
    [
        # Whether a fast zero is refused, and the command flags that go on of one that is fast.
        ("native", "default", False, FAST_ZERO),
        ("native", "slow", True, FAST_ZERO),
        ("native", "ignore", False, 0),
        ("notrim", "default", False, FAST_ZERO | NO_HOLE),
        ("notrim", "slow", True, FAST_ZERO | NO_HOLE),
        ("notrim", "ignore", False, NO_HOLE),
        ("emulate", "default", True, FAST_ZERO),
        ("emulate", "slow", True, FAST_ZERO),
        ("emulate", "ignore", False, 0),
    ],
)
def test_command_flags(how: str, fast: str, refuses: bool, passed: int) -> None:
    policy = configured(Zero, {"how": how, "fast": fast})
    why = refused(policy, Request(Cmd.WRITE_ZEROES, 0, 512, int(FAST_ZERO)))
    assert (why and why.error) == (Errno.ENOTSUP if refuses else None)
    assert refused(policy, Request(Cmd.WRITE_ZEROES, 0, 512, int(NO_HOLE | FUA))) is None
    row = table(policy, view())[Cmd.WRITE_ZEROES]
    assert row.passed_flags(FAST_ZERO) == passed
    assert row.passed_flags(FUA | NO_HOLE) == FUA | NO_HOLE


@pytest.mark.parametrize("flags", [0, FUA, NO_HOLE, FUA | NO_HOLE])
@pytest.mark.parametrize(
    ("offset", "length", "pieces"),
    [
        (512, 0, []),
        (511, 1, [(511, 1)]),
        (0, MIB, [(0, MIB)]),
        (7, MIB + 1, [(7, MIB), (7 + MIB, 1)]),
        (512, 3 * MIB, [(512, MIB), (512 + MIB, MIB), (512 + 2 * MIB, MIB)]),
    ],
)
async def test_emulate_writes_pieces_each_with_fua(
    offset: int, length: int, pieces: list[tuple[int, int]], flags: int
) -> None:
    disk = Disk(bytearray(4 * MIB))
    policy = configured(Zero, {"how": "emulate"})
    assert await do(policy, Request(Cmd.WRITE_ZEROES, offset, length, int(flags)), disk) is None
    assert [(r.command, r.offset, r.length, r.flags) for r in disk.asked] == [
        (Cmd.WRITE, *piece, flags & FUA) for piece in pieces
    ]


@given(offset=st.integers(0, 3 * MIB), data=st.data())
async def test_emulate_zeroes_exactly_the_range(offset: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, 3 * MIB - offset))
    disk = Disk(bytearray(b"\xff") * (3 * MIB))
    request = Request(Cmd.WRITE_ZEROES, offset, length)
    await do(configured(Zero, {"how": "emulate"}), request, disk)
    assert disk.content.count(0) == length
    assert disk.content[offset : offset + length].count(0) == length


async def test_a_piece_that_fails_is_the_last() -> None:
    disk = Disk(bytearray(b"\xff") * (3 * MIB))

    async def full_at_one_mib(request: Request) -> Result:
        if request.offset == MIB:
            raise Failed(Errno.ENOSPC, "full", request.offset)
        return await disk(request)

    request = Request(Cmd.WRITE_ZEROES, 0, 3 * MIB)
    with pytest.raises(Failed) as caught:
        await configured(Zero, {"how": "emulate"}).zero(request, full_at_one_mib)
    assert (caught.value.error, caught.value.offset) == (Errno.ENOSPC, MIB)
    assert [request.offset for request in disk.asked] == [0]
    assert disk.content.count(0) == MIB


@pytest.mark.parametrize("fast", ["default", "slow"])
async def test_a_fast_zero_that_another_policy_made_touches_nothing(fast: str) -> None:
    disk = Disk()
    request = Request(Cmd.WRITE_ZEROES, 0, 512, int(FAST_ZERO))
    with pytest.raises(Failed) as caught:
        await do(configured(Zero, {"how": "emulate", "fast": fast}), request, disk)
    assert caught.value.error is Errno.ENOTSUP
    assert not disk.asked


async def test_a_fast_zero_that_is_ignored_is_written() -> None:
    disk = Disk()
    policy = configured(Zero, {"how": "emulate", "fast": "ignore"})
    await do(policy, Request(Cmd.WRITE_ZEROES, 0, 512, int(FAST_ZERO)), disk)
    assert disk.content[:512] == bytes(512)
    assert disk.asked[0].flags == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "plugin"}, "'native', 'none', 'emulate' or 'notrim'"),
        ({"fast": "never"}, "'default', 'none', 'slow' or 'ignore'"),
        (
            {"how": "none", "fast": "slow"},
            'expected no fast = "slow" with how = "none": without WRITE_ZEROES there are no fast zeroes',
        ),
        ({"how": "none", "fast": "ignore"}, 'expected no fast = "ignore" with how = "none"'),
        ({"mode": "none"}, "mode"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Zero, options)
    assert message in str(caught.value)
