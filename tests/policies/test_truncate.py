import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import RANGED, BlockSizes, Cmd, CmdFlag, Denied, Errno, Failed, Policy, Request
from policies.truncate import Truncate
from tests.policies.harness import ALLOCATION, KIB, MIB, Disk, configured, do, view

BITMAP = "qemu:dirty-bitmap:b"


def placed(size: int | str, behind: int) -> Policy:
    """The policy on a link to a disk of `behind` bytes."""
    return configured(Truncate, {"size": size}).over(view(behind))


@pytest.mark.parametrize(
    ("options", "behind", "shown"),
    [
        ({"size": "512K"}, MIB, 512 * KIB),
        ({"size": "2M"}, MIB, 2 * MIB),
        ({"size": 7}, MIB, 7),
        ({"size": 0}, MIB, 0),
        ({"size": "1M"}, MIB, MIB),
        ({"round-up": 512}, 1000, 1024),
        ({"round-up": 512}, 1024, 1024),
        ({"round-up": 512}, 0, 0),
        ({"round-up": 1}, 1001, 1001),
        ({"round-down": "4K"}, 8191, 4096),
        ({"round-down": "4K"}, 8192, 8192),
        ({"round-down": "4K"}, 4095, 0),
        ({"size": 1001, "round-up": 512}, MIB, 1024),
        ({"size": 1001, "round-down": 512}, MIB, 512),
        ({"round-up": 512, "round-down": "4K"}, 8100, 8192),  # in this order
    ],
)
def test_the_size(options: dict[str, object], behind: int, shown: int) -> None:
    policy = configured(Truncate, options)
    assert policy.describe(view(behind)).size == shown
    assert policy.hooked(view(behind)) == (RANGED if shown > behind else ())


def test_nothing_else_changes() -> None:
    assert configured(Truncate, {"size": 10}).describe(view(20)) == view(10)
    assert configured(Truncate, {"size": 20}).describe(view(10)) == view(20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected size, round-up or round-down, got none of them"),
        ({"round-up": 0}, "expected a power of two from 1 to 2G, got 0"),
        ({"round-up": 768}, "expected a power of two from 1 to 2G, got 768"),
        ({"round-down": "4G"}, "expected a power of two from 1 to 2G, got 4294967296"),
        ({"size": -1}, "expected a size of 0 or more, got -1"),
        ({"size": "8E"}, "less than 8E"),
        ({"size": "big"}, "expected a size such as 64M"),
        ({"truncate": 5}, "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="1 validation error") as told:
        configured(Truncate, options)
    assert message in str(told.value)


def test_a_size_that_no_client_could_have() -> None:
    policy = configured(Truncate, {"size": 2**63 - 1, "round-up": 512})
    with pytest.raises(Denied, match="at most 9223372036854775807 is possible"):
        policy.describe(view())


def test_a_last_block_that_nobody_can_read_is_not_passed_off_as_zeros() -> None:
    blocks = view(1000, block_sizes=BlockSizes(512, 4096, MIB))
    policy = configured(Truncate, {"round-up": 512})
    assert policy.describe(blocks).size == 1024
    strict = configured(Truncate, {"size": 512}).describe(blocks)
    assert strict.size == 512
    only_blocks = view(1000, block_sizes=BlockSizes(512, 4096, MIB), any_alignment=False)
    with pytest.raises(Denied, match="the last 488 bytes of it could not be reached"):
        policy.describe(only_blocks)
    assert configured(Truncate, {"size": 512}).describe(only_blocks).size == 512
    whole = view(1024, block_sizes=BlockSizes(512, 4096, MIB), any_alignment=False)
    assert configured(Truncate, {"size": 2048}).describe(whole).size == 2048


async def test_each_link_has_its_own_end() -> None:
    policy = configured(Truncate, {"size": 100})
    short, long = policy.over(view(10)), policy.over(view(20))
    content = bytearray(b"x" * 20)
    request = Request(Cmd.READ, 0, 30)
    assert await do(short, request, Disk(content), view(10)) == b"x" * 10 + bytes(20)
    assert await do(long, request, Disk(content), view(20)) == b"x" * 20 + bytes(10)


@pytest.mark.parametrize(
    ("offset", "length", "inside"),
    [
        (0, 4, (0, 4)),
        (0, 10, (0, 10)),
        (0, 11, (0, 10)),
        (9, 11, (9, 10)),
        (10, 1, None),
        (10, 10, None),
        (19, 1, None),
    ],
)
@pytest.mark.parametrize("command", sorted(RANGED - {Cmd.BLOCK_STATUS}))
async def test_only_what_is_on_the_disk_goes_there(
    command: Cmd, offset: int, length: int, inside: tuple[int, int] | None
) -> None:
    policy, disk = placed(20, 10), Disk(bytearray(b"0123456789"))
    # FUA has to reach the disk.
    data = bytes(length) if command is Cmd.WRITE else b""
    await do(policy, Request(command, offset, length, CmdFlag.FUA, data), disk, view(10))
    assert [(each.offset, each.end) for each in disk.asked] == ([inside] if inside else [])
    for asked in disk.asked:
        assert asked.command is command
        assert asked.flags == CmdFlag.FUA


@pytest.mark.parametrize(
    ("offset", "data", "error_at"),
    [
        (5, b"abcde", None),
        (5, b"abcde\0\0", None),
        (5, b"abcde\0\1", 10),
        (10, b"\1", 10),
        (12, b"\0\1", 12),
        (10, b"\0", None),
    ],
)
async def test_only_zeros_fit_behind_the_disk(
    offset: int, data: bytes, error_at: int | None
) -> None:
    policy, disk = placed(20, 10), Disk(bytearray(10))
    request = Request(Cmd.WRITE, offset, len(data), 0, data)
    if error_at is None:
        await do(policy, request, disk, view(10))
        return
    with pytest.raises(Failed, match="the disk ends at 10, zeros alone fit") as failed:
        await do(policy, request, disk, view(10))
    assert (failed.value.error, failed.value.offset) == (Errno.ENOSPC, error_at)
    assert not disk.asked


class Extents(Disk):
    """A disk that gives the extents that it was told."""

    extents: list[tuple[int, int]]

    async def __call__(self, request: Request) -> dict[str, list[tuple[int, int]]]:
        self.asked.append(request)
        return dict.fromkeys(request.contexts, self.extents)


@pytest.mark.parametrize(
    ("offset", "length", "flags", "behind", "allocation", "bitmap"),
    [
        # On the disk alone: as it says, also longer than asked.
        (0, 5, 0, [(8, 0)], [(8, 0)], [(8, 0)]),
        # All of it behind the disk.
        (10, 4, 0, [], [(4, 3)], [(4, 0)]),
        (12, 8, CmdFlag.REQ_ONE, [], [(8, 3)], [(8, 0)]),
        # Across the end.
        (0, 20, 0, [(10, 5)], [(10, 5), (10, 3)], [(10, 5), (10, 0)]),
        (0, 20, 0, [(4, 0), (6, 1)], [(4, 0), (6, 1), (10, 3)], [(4, 0), (6, 1), (10, 0)]),
        (5, 7, 0, [(5, 3)], [(7, 3)], [(5, 3), (2, 0)]),
        (5, 7, 0, [(5, 0)], [(5, 0), (2, 3)], [(7, 0)]),
        # A server that goes on behind its end: the tail is ours.
        (0, 20, 0, [(512, 1)], [(10, 1), (10, 3)], [(10, 1), (10, 0)]),
        (0, 20, 0, [(10, 1), (502, 7)], [(10, 1), (10, 3)], [(10, 1), (10, 0)]),
        # An answer that stops before the end stays one.
        (0, 20, 0, [(4, 1)], [(4, 1)], [(4, 1)]),
        # One extent alone.
        (0, 20, CmdFlag.REQ_ONE, [(4, 1)], [(4, 1)], [(4, 1)]),
        (0, 20, CmdFlag.REQ_ONE, [(10, 1)], [(10, 1)], [(10, 1)]),
        (0, 20, CmdFlag.REQ_ONE, [(10, 3)], [(20, 3)], [(10, 3)]),
    ],
)
async def test_block_status(
    offset: int,
    length: int,
    flags: int,
    behind: list[tuple[int, int]],
    allocation: list[tuple[int, int]],
    bitmap: list[tuple[int, int]],
) -> None:
    policy, disk = placed(20, 10), Extents(bytearray(10))
    disk.extents = behind
    request = Request(Cmd.BLOCK_STATUS, offset, length, flags, contexts=(ALLOCATION, BITMAP))
    status = await do(policy, request, disk, view(10))
    assert status == {ALLOCATION: allocation, BITMAP: bitmap}
    assert all(each.end <= 10 and each.flags == flags for each in disk.asked)


async def test_what_fails_on_the_disk_fails() -> None:
    policy, disk = placed(20, 10), Disk(bytearray(10), fails={Cmd.WRITE: Errno.EIO})
    with pytest.raises(Failed, match="EIO"):
        await do(policy, Request(Cmd.WRITE, 5, 7, 0, bytes(7)), disk, view(10))


steps = st.lists(
    st.tuples(
        st.sampled_from([Cmd.READ, Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM]),
        st.integers(0, 30),
        st.integers(0, 12),
        st.integers(0, 1),
    ),
    max_size=12,
)


@given(steps, st.integers(0, 32))
def test_it_is_a_disk_whose_tail_stays_zero(
    done: list[tuple[Cmd, int, int, int]], behind: int
) -> None:
    async def check() -> None:
        policy, disk = placed(42, behind), Disk(bytearray(b"\7" * behind))
        model = bytearray(disk.content + bytes(42 - behind))
        for command, offset, length, byte in done:
            data = bytes([byte]) * length if command is Cmd.WRITE else b""
            request = Request(command, offset, length, 0, data)
            if command is Cmd.READ:
                assert await do(policy, request, disk, view(behind)) == model[offset : request.end]
            elif any(data[max(0, behind - offset) :]):
                with pytest.raises(Failed, match="ENOSPC"):
                    await do(policy, request, disk, view(behind))
            else:
                await do(policy, request, disk, view(behind))
                model[offset : request.end] = data or bytes(length)
        assert model[:behind] == disk.content

    trio.run(check)
