import pytest
from pydantic import ValidationError

from gateway.policy import (
    RANGED,
    WRITE_CLASS,
    BlockSizes,
    Cmd,
    Denied,
    Errno,
    Flag,
    Request,
)
from gateway.protocol.table import agreed_flags
from policies.commands import Commands
from tests.policies.harness import (
    ALLOCATION,
    EVERYTHING,
    KIB,
    MIB,
    configured,
    refused,
    table,
    view,
)

ALL = frozenset(Cmd) - {Cmd.DISC}
BITMAP = "qemu:dirty-bitmap:b"


@pytest.mark.parametrize(
    ("options", "denied"),
    [
        ({}, set()),
        ({"deny": ["TRIM", "CACHE"]}, {Cmd.TRIM, Cmd.CACHE}),
        ({"allow": ["READ"]}, ALL - {Cmd.READ}),
        ({"allow": []}, ALL),
        ({"allow": ["READ", "WRITE", "FLUSH"]}, ALL - {Cmd.READ, Cmd.WRITE, Cmd.FLUSH}),
        ({"deny": ["FLUSH"], "unsafe": True}, {Cmd.FLUSH}),
        ({"deny": ["FLUSH", "WRITE", "TRIM", "WRITE_ZEROES"]}, {Cmd.FLUSH, *WRITE_CLASS}),
    ],
)
@pytest.mark.parametrize(("error", "told"), [({}, Errno.EPERM), ({"error": "EIO"}, Errno.EIO)])
def test_denied_commands_are_refused(
    options: dict[str, object], denied: set[Cmd], error: dict[str, object], told: Errno
) -> None:
    policy = configured(Commands, options | error)
    for command in ALL:
        why = refused(policy, Request(command, 0, 512))
        assert (why and why.error) == (told if command in denied else None)
        if why is not None:
            assert why.text == f"{command.name}: refused by policy commands"
    assert not policy.hooked(view())


@pytest.mark.parametrize(
    ("denied", "lost", "gained"),
    [
        (["TRIM"], Flag.SEND_TRIM, 0),
        (["CACHE"], Flag.SEND_CACHE, 0),
        (["WRITE_ZEROES"], Flag.SEND_WRITE_ZEROES, 0),
        (["READ", "WRITE", "BLOCK_STATUS"], 0, 0),
        (
            ["WRITE", "WRITE_ZEROES", "TRIM"],
            Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES,
            Flag.READ_ONLY,
        ),
    ],
)
def test_denied_commands_are_not_offered(denied: list[str], lost: int, gained: int) -> None:
    policy = configured(Commands, {"deny": denied})
    shown = policy.describe(view())
    assert agreed_flags(shown.flags, table(policy, view())) == EVERYTHING & ~lost | gained


def test_without_block_status_there_are_no_contexts() -> None:
    seen = view(contexts=frozenset({ALLOCATION, BITMAP}))
    for options in ({"deny": ["BLOCK_STATUS"]}, {"allow": ["READ"]}):
        policy = configured(Commands, options)
        assert not policy.describe(seen).contexts
        assert policy.context(ALLOCATION) is False
        with pytest.raises(Denied, match=BITMAP):
            policy.context(BITMAP)
    free = configured(Commands, {"deny": ["TRIM"]})
    assert free.describe(seen) == seen
    assert free.context(BITMAP)
    assert free.context(ALLOCATION)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("64K+64K", 64 * KIB, 128 * KIB),
        ("64K-131071", 64 * KIB, 128 * KIB),
        ("64K-", 64 * KIB, MIB),
        ("0-0", 0, 1),
        ("512K+1G", 512 * KIB, MIB),
        ("0-", 0, MIB),
    ],
)
@pytest.mark.parametrize("command", sorted(WRITE_CLASS))
def test_write_range(text: str, start: int, end: int, command: Cmd) -> None:
    policy = configured(Commands, {"write-range": text})

    def why(first: int, behind: int) -> Errno | None:
        refusal = refused(policy, Request(command, first, behind - first))
        return refusal.error if refusal is not None else None

    assert why(start, end) is None
    assert why(start, start + 1) is None
    assert why(end - 1, end) is None
    if start:
        assert why(start - 1, start) is Errno.EPERM
        assert why(start - 1, start + 1) is Errno.EPERM
        assert why(0, MIB) is Errno.EPERM
        last = "the end" if end == MIB else end - 1
        text = f"{command.name}: only bytes {start} to {last} may be written"
        refusal = refused(policy, Request(command, 0, 1))
        assert refusal is not None
        assert refusal.text == text
    if end < MIB:
        assert why(end, end + 1) is Errno.EPERM
        assert why(end - 1, end + 1) is Errno.EPERM
        # However far it claims to reach.
        assert why(start, 2**64) is Errno.EPERM
    for other in ALL - WRITE_CLASS:
        assert refused(policy, Request(other, 0, MIB)) is None


def test_a_range_behind_the_end_leaves_nothing_to_write() -> None:
    policy = configured(Commands, {"write-range": "2M+1M", "error": "ENOSPC"})
    for offset in (0, MIB - 1):
        refusal = refused(policy, Request(Cmd.WRITE, offset, 1))
        assert refusal is not None
        assert refusal.error is Errno.ENOSPC


@pytest.mark.parametrize("command", sorted(RANGED))
@pytest.mark.parametrize(("error", "told"), [({}, Errno.EINVAL), ({"error": "EPERM"}, Errno.EPERM)])
def test_longest(command: Cmd, error: dict[str, object], told: Errno) -> None:
    policy = configured(Commands, {"longest-request": "64K", "longest-effect": 131072, **error})
    longest = 64 * KIB if command in (Cmd.READ, Cmd.WRITE) else 128 * KIB
    assert refused(policy, Request(command, 0, longest)) is None
    refusal = refused(policy, Request(command, 0, longest + 1))
    assert refusal is not None
    assert (refusal.error, refusal.text) == (
        told,
        f"{command.name}: at most {longest} bytes are taken",
    )


def test_one_limit_leaves_the_other_commands_alone() -> None:
    for option, limited in (
        ("longest-request", {Cmd.READ, Cmd.WRITE}),
        ("longest-effect", RANGED - {Cmd.READ, Cmd.WRITE}),
    ):
        policy = configured(Commands, {option: "64K"})
        assert {c for c in ALL if refused(policy, Request(c, 0, MIB))} == limited


@pytest.mark.parametrize(
    ("sizes", "longest", "told"),
    [
        (BlockSizes(1, 4096, 32 * MIB), "1M", BlockSizes(1, 4096, MIB)),
        (BlockSizes(1, 4096, 64 * KIB), "64K", BlockSizes(1, 4096, 64 * KIB)),
        (BlockSizes(1, 4096, 64 * KIB), "1M", BlockSizes(1, 4096, 64 * KIB)),
        (BlockSizes(1, 4096, 0xFFFFFFFF), "1M", BlockSizes(1, 4096, MIB)),
        (BlockSizes(4096, 4096, 32 * MIB), 70001, BlockSizes(4096, 4096, 68 * KIB)),
        (BlockSizes(512, MIB, 32 * MIB), 70001, BlockSizes(512, 64 * KIB, 136 * 512)),
        (BlockSizes(64 * KIB, MIB, 32 * MIB), "64K", BlockSizes(64 * KIB, 64 * KIB, 64 * KIB)),
    ],
)
def test_the_client_is_told_the_longest_request(
    sizes: BlockSizes, longest: object, told: BlockSizes
) -> None:
    policy = configured(Commands, {"longest-request": longest})
    assert policy.describe(view(block_sizes=sizes)) == view(block_sizes=told)


RANGE = 'expected a range such as "1M+512M", "0-445" or "1M-", got'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deny": ["TRMI"]}, 'expected a command, got "TRMI", did you mean "TRIM"?'),
        ({"allow": ["write_zeros"]}, 'did you mean "WRITE_ZEROES"?'),
        ({"allow": ["NBD_CMD_READ"]}, 'did you mean "READ"?'),
        ({"deny": ["DISC"]}, 'got "DISC"'),
        ({"deny": ["XX"]}, "there are READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS"),
        ({"deny": ["TRIM"], "allow": ["READ"]}, "expected deny or allow, got both"),
        ({"deny": ["FLUSH"]}, "FLUSH is refused and the disk can be written"),
        ({"deny": ["FLUSH", "WRITE", "TRIM"]}, "FLUSH is refused and the disk can be written"),
        ({"allow": ["READ", "WRITE"]}, "or set unsafe = true"),
        ({"write-range": "1M"}, f'{RANGE} "1M"'),
        ({"write-range": "1M-2M"}, f'{RANGE} "1M-2M" (an end is in bytes, and inclusive)'),
        ({"write-range": "1X-"}, f'{RANGE} "1X-"'),
        ({"write-range": 7}, f'{RANGE} "7"'),
        ({"write-range": "-5"}, f'{RANGE} "-5"'),
        ({"write-range": "8-7"}, 'expected a range of at least one byte, got "8-7"'),
        ({"write-range": "8+0"}, 'expected a range of at least one byte, got "8+0"'),
        ({"write-range": "8+"}, 'expected a range of at least one byte, got "8+"'),
        ({"longest-request": "32K"}, "expected a limit of at least 64K, got 32K"),
        ({"longest-effect": 65535}, "expected a limit of at least 64K, got 65535"),
        ({"longest-request": "much"}, "expected a size such as 64M or 1G"),
        ({"error": "ENOTSUP"}, "expected an error that fits every command (EPERM, EIO,"),
        ({"error": "EOVERFLOW"}, "got EOVERFLOW"),
        ({"error": "EWHAT"}, "got EWHAT"),
        ({"write_rnge": ""}, "write_rnge"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Commands, options)
    assert message in str(caught.value)
