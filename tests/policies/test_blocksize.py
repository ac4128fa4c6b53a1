import pytest

from gateway.policy import BlockSizes, Cmd, Denied, Errno, Request
from gateway.protocol.commands import RefusedCommand
from policies.blocksize import Blocksize
from tests.policies.harness import KIB, MIB, configured, refused, table, view

BLOCKS = BlockSizes(512, 4096, 32 * MIB)


@pytest.mark.parametrize(
    ("options", "behind", "told"),
    [
        ({"minimum": 4096}, BLOCKS, (4096, 4096, 32 * MIB)),
        ({"minimum": "64K"}, BLOCKS, (64 * KIB, 64 * KIB, 32 * MIB)),
        ({"minimum": 1}, BLOCKS, (1, 4096, 32 * MIB)),  # the gateway makes it so
        ({"preferred": "64K"}, BLOCKS, (512, 64 * KIB, 32 * MIB)),
        ({"preferred": 512}, BLOCKS, (512, 512, 32 * MIB)),
        ({"maximum": "1M"}, BLOCKS, (512, 4096, MIB)),
        ({"maximum": "64M"}, BLOCKS, (512, 4096, 32 * MIB)),  # never above what is behind
        ({"maximum": 1536}, BLOCKS, (512, 1024, 1536)),
        ({"maximum": 1000}, BLOCKS, (512, 512, 512)),
        ({"minimum": 4096}, BlockSizes(1, 512, 9 * KIB), (4096, 4096, 8 * KIB)),
        (
            {"minimum": 4096, "preferred": "64K", "maximum": "1M"},
            BLOCKS,
            (4096, 64 * KIB, MIB),
        ),
    ],
)
@pytest.mark.parametrize("enforce", [True, False])
def test_what_is_told(
    options: dict[str, object], behind: BlockSizes, told: tuple[int, int, int], enforce: bool
) -> None:
    policy = configured(Blocksize, options | {"enforce": enforce})
    shown = policy.describe(view(block_sizes=behind))
    assert shown.block_sizes == BlockSizes(*told)
    assert shown.any_alignment is not enforce
    assert not policy.hooked(view())


@pytest.mark.parametrize(
    ("options", "behind", "message"),
    [
        (
            {"preferred": 1024},
            BlockSizes(4096, 4096, MIB),
            "with what is behind (minimum 4096, preferred 4096, maximum 1048576):"
            " expected preferred of at least minimum, 4096, got 1024",
        ),
        (
            {"maximum": 512},
            BlockSizes(4096, 4096, MIB),
            "expected maximum of at least 4096, got 0",
        ),
        (
            {"preferred": "1M"},
            BlockSizes(1, 4096, 64 * KIB),
            "expected maximum of at least 1048576, got 65536",
        ),
        (
            {"minimum": "64K"},
            BlockSizes(1, 512, 4096),
            "expected maximum of at least 65536, got 0",
        ),
    ],
)
def test_what_does_not_go_with_what_is_behind(
    options: dict[str, object], behind: BlockSizes, message: str
) -> None:
    with pytest.raises(Denied) as denied:
        configured(Blocksize, options).describe(view(block_sizes=behind))
    assert message in str(denied.value)


def test_whole_blocks_are_not_made_smaller() -> None:
    behind = view(block_sizes=BLOCKS, any_alignment=False)
    for enforce in (True, False):
        policy = configured(Blocksize, {"minimum": 256, "enforce": enforce})
        with pytest.raises(Denied, match="blocks of 256 bytes cannot be had"):
            policy.describe(behind)
        for minimum in (512, 4096):
            larger = configured(Blocksize, {"minimum": minimum, "enforce": enforce})
            assert larger.describe(behind).block_sizes.minimum == minimum
            assert not larger.describe(behind).any_alignment


@pytest.mark.parametrize("command", [Cmd.READ, Cmd.WRITE])
def test_what_is_too_long_is_refused(command: Cmd) -> None:
    policy = configured(Blocksize, {"maximum": "64K"})
    assert refused(policy, Request(command, 0, 64 * KIB)) is None
    assert refused(policy, Request(command, 0, 64 * KIB + 1)) == RefusedCommand(
        Errno.EINVAL, f"{command.name}: at most 65536 bytes are taken"
    )


def test_no_maximum_holds_for_what_carries_no_data() -> None:
    policy = configured(Blocksize, {"maximum": "64K"})
    for command in (Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.CACHE, Cmd.BLOCK_STATUS):
        assert refused(policy, Request(command, 0, MIB)) is None


@pytest.mark.parametrize(
    "options", [{"maximum": "64K", "enforce": False}, {"minimum": 512}, {"preferred": 512}]
)
def test_what_is_not_enforced_bars_nothing(options: dict[str, object]) -> None:
    assert not table(configured(Blocksize, options), view()).rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected minimum, preferred or maximum, got none of them"),
        ({"enforce": False}, "expected minimum, preferred or maximum, got none of them"),
        ({"minimum": 0}, "expected a power of two from 1 to 64K, got 0"),
        ({"minimum": 768}, "expected a power of two from 1 to 64K, got 768"),
        ({"minimum": "128K"}, "expected a power of two from 1 to 64K, got 128K"),
        ({"preferred": 256}, "expected a power of two from 512 to 32M, got 256"),
        ({"preferred": 768}, "expected a power of two from 512 to 32M, got 768"),
        ({"preferred": "64M"}, "expected a power of two from 512 to 32M, got 64M"),
        ({"maximum": 511}, "expected 512 to 64M, got 511"),
        ({"maximum": "65M"}, "expected 512 to 64M, got 65M"),
        ({"minimum": 4096, "preferred": 512}, "expected preferred of at least minimum, 4096"),
        ({"preferred": "1M", "maximum": "64K"}, "expected maximum of at least 1048576, got 65536"),
        ({"minimum": 4096, "maximum": 512}, "expected maximum of at least 4096, got 512"),
        ({"minimum": 4096, "maximum": 5000}, "expected maximum to be a multiple of minimum, 4096"),
        ({"enforce": "yes"}, "valid boolean"),
    ],
)
def test_a_mistake_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="1 validation error") as told:
        configured(Blocksize, options)
    assert message in str(told.value)
