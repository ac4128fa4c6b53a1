import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import BlockSizes, Cmd, CmdFlag, Errno, Failed, Request
from gateway.protocol.commands import RefusedCommand
from policies.protect import Protect
from tests.policies.harness import KIB, MIB, Disk, configured, do, refused, table, view

WRITES = (Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM)


def protecting(*ranges: str, unchanged: str = "refuse") -> Protect:
    policy = configured(Protect, {"ranges": list(ranges), "unchanged": unchanged})
    assert isinstance(policy, Protect)
    return policy


@pytest.mark.parametrize(
    ("ranges", "protected"),
    [
        (["0-445"], [(0, 446)]),
        (["0-0x1bd"], [(0, 446)]),
        (["0-0X1BD"], [(0, 446)]),
        (["7-7"], [(7, 8)]),
        (["-9"], [(0, 10)]),
        (["1023K-"], [(1023 * KIB, MIB)]),
        (["1K+2K"], [(KIB, 3 * KIB)]),
        (["0x400+0x800"], [(KIB, 3 * KIB)]),
        (["~1K+2K"], [(0, KIB), (3 * KIB, MIB)]),
        (["~0-9"], [(10, MIB)]),
        (["~10-"], [(0, 10)]),
        (["~-9"], [(10, MIB)]),
        (["0-9", "10-19"], [(0, 20)]),
        (["30-39", "0-19", "5-9"], [(0, 20), (30, 40)]),
        (["0-19", "10-29", "30+1"], [(0, 31)]),
        (["~0-9", "~5-19"], [(0, 5), (10, MIB)]),
        (["~0-9", "~10-19"], [(0, MIB)]),
        (["2M+1"], []),  # behind the end
        (["1M+1"], []),
        (["1048575+5"], [(MIB - 1, MIB)]),
    ],
)
def test_the_ranges(ranges: list[str], protected: list[tuple[int, int]]) -> None:
    said = table(protecting(*ranges), view(MIB))
    for command in WRITES:
        assert sorted((each.start, each.end) for each in said[command].barred) == protected


@pytest.mark.parametrize("command", WRITES)
@pytest.mark.parametrize(
    ("offset", "length", "allowed"),
    [
        (0, 4096, True),
        (4096, 1, False),
        (4095, 2, False),
        (0, 16 * KIB, False),
        (8 * KIB - 1, 1, False),
        (8 * KIB, 4096, True),
    ],
)
def test_what_is_refused(command: Cmd, offset: int, length: int, allowed: bool) -> None:
    reason = refused(protecting("4K+4K"), Request(command, offset, length))
    text = f"{command.name}: bytes 4096 to 8191 are protected"
    assert reason == (None if allowed else RefusedCommand(Errno.EPERM, text))


@pytest.mark.parametrize("command", [Cmd.READ, Cmd.CACHE, Cmd.BLOCK_STATUS])
def test_what_does_not_write_is_free(command: Cmd) -> None:
    assert refused(protecting("0-"), Request(command, 0, MIB)) is None


def test_refusing_costs_no_command_anything() -> None:
    assert not protecting("0-9").hooked(view())
    assert protecting("0-9").describe(view()) == view()


@pytest.mark.parametrize(
    ("given_range", "message"),
    [
        ("", 'expected "START-END", both inclusive, or "START+LENGTH", got ""'),
        ("-", 'expected "START-END", both inclusive, or "START+LENGTH", got "-"'),
        ("~", 'got "~"'),
        ("12", 'got "12"'),
        ("1-2-3", 'got "1-2-3"'),
        ("+5", 'expected "START-END", both inclusive, or "START+LENGTH", got "+5"'),
        ("5+", 'got "5+"'),
        (" 1-2", 'got " 1-2"'),
        ("1-2\n", "expected"),
        ("0-1M", 'as it is the last byte of the range, got "0-1M"; write "START+LENGTH"'),
        ("9-8", 'expected at least one byte in the range, got "9-8"'),
        ("9+0", 'expected at least one byte in the range, got "9+0"'),
        ("010-20", 'expected a number without a 0 before it, got "010"'),
        ("0-020", 'expected a number without a 0 before it, got "020"'),
        ("x-5", 'expected a size such as 64M or 1G (b, K, M, G, T, P, E, or bytes), got "x"'),
        ("٣-٤", "expected"),
        ("7E+2E", "expected a range that ends below 8E"),
        ("0-0xffffffffffffffff", "expected a range that ends below 8E"),
    ],
)
def test_a_mistake_is_told(given_range: str, message: str) -> None:
    with pytest.raises(ValueError, match="1 validation error") as told:
        protecting(given_range)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ranges\n  Field required"),
        ({"ranges": []}, "at least 1 item"),
        ({"ranges": ["0-1"] * 257}, "at most 256 items"),
        ({"ranges": ["0-1"], "unchanged": "maybe"}, "'refuse' or 'allow'"),
    ],
)
def test_a_mistake_in_the_options_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="1 validation error") as told:
        configured(Protect, options)
    assert message in str(told.value)


# --- unchanged = "allow"


def half_zero() -> Disk:
    """Zeros up to 512K, then no zeros."""
    return Disk(bytearray(512 * KIB) + bytearray([7]) * (512 * KIB))


def writing(offset: int, data: bytes, flags: int = 0) -> Request:
    return Request(Cmd.WRITE, offset, len(data), flags, data)


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (writing(512 * KIB, b"\7" * 8), True),
        (writing(512 * KIB - 4, bytes(4) + b"\7" * 4), True),
        (writing(512 * KIB - 4, bytes(4) + b"\7\7\7\1"), False),
        (writing(512 * KIB - 4, b"\0\0\0\1" + b"\7" * 4), False),
        (writing(0, b"free"), True),
        (writing(256 * KIB - 4, b"free"), True),
        (writing(256 * KIB - 4, b"free!"), False),
        (writing(768 * KIB - 1, b"\7free"), True),
        (Request(Cmd.WRITE_ZEROES, 0, 512 * KIB), True),
        (Request(Cmd.WRITE_ZEROES, 0, 512 * KIB + 1), False),
        (Request(Cmd.WRITE_ZEROES, 768 * KIB, 256 * KIB), True),
        (Request(Cmd.TRIM, 0, 512 * KIB), True),
        (Request(Cmd.TRIM, 0, 512 * KIB + 1), False),
    ],
)
async def test_only_what_changes_nothing_is_allowed(request_: Request, allowed: bool) -> None:
    policy, disk = protecting("256K+512K", unchanged="allow"), half_zero()
    before = bytes(disk.content)
    if allowed:
        await do(policy, request_, disk)
        assert disk.content[256 * KIB : 768 * KIB] == before[256 * KIB : 768 * KIB]
    else:
        with pytest.raises(
            Failed, match=r"bytes \d+ to \d+ are protected, and would change"
        ) as failed:
            await do(policy, request_, disk)
        assert failed.value.error is Errno.EPERM
        assert disk.content == before
        assert {request.command for request in disk.asked} == {Cmd.READ}


async def test_a_write_goes_on_whole_with_its_flags() -> None:
    policy, disk = protecting("256K+512K", unchanged="allow"), half_zero()
    request = writing(256 * KIB - 4, b"free" + bytes(4), CmdFlag.FUA)
    await do(policy, request, disk)
    assert disk.asked[-1] == request


async def test_a_trim_goes_around_with_its_flags() -> None:
    policy, disk = protecting("4K+4K", "12K+4K", unchanged="allow"), half_zero()
    await do(policy, Request(Cmd.TRIM, 0, 20 * KIB, CmdFlag.FUA), disk)
    trimmed = [(each.offset, each.end) for each in disk.asked if each.command is Cmd.TRIM]
    assert trimmed == [(0, 4 * KIB), (8 * KIB, 12 * KIB), (16 * KIB, 20 * KIB)]
    assert all(each.has(CmdFlag.FUA) for each in disk.asked if each.command is Cmd.TRIM)


@pytest.mark.parametrize(
    ("offset", "end", "trimmed"),
    [(2, 6, [(2, 4)]), (6, 10, [(8, 10)]), (4, 8, []), (5, 6, []), (0, 4, [(0, 4)])],
)
async def test_no_trim_is_empty(offset: int, end: int, trimmed: list[tuple[int, int]]) -> None:
    policy, disk = protecting("4-7", unchanged="allow"), half_zero()
    await do(policy, Request(Cmd.TRIM, offset, end - offset), disk)
    assert [(each.offset, each.end) for each in disk.asked if each.command is Cmd.TRIM] == trimmed


async def test_a_trim_keeps_to_whole_blocks_where_they_alone_are_taken() -> None:
    seen = view(block_sizes=BlockSizes(512, 4096, MIB), any_alignment=False)
    whole = protecting("600-1000", "2048-2559", unchanged="allow").over(seen)
    disk = half_zero()
    await do(whole, Request(Cmd.TRIM, 0, 4096), disk)
    trimmed = [(each.offset, each.end) for each in disk.asked if each.command is Cmd.TRIM]
    assert trimmed == [(0, 512), (1024, 2048), (2560, 4096)]
    assert all(each.offset % 512 == each.length % 512 == 0 for each in disk.asked)
    policy = protecting("600-1000")
    assert policy.over(seen) is policy


async def test_what_is_compared_is_read_in_the_blocks_of_the_server() -> None:
    """Of what is read around the range nothing is compared."""
    policy, disk = protecting("100000-150000", unchanged="allow"), Disk()
    new = bytearray(b"n" * 448 * KIB)
    kept = slice(100000 - 32 * KIB, 150001 - 32 * KIB)
    new[kept] = disk.content[100000:150001]
    await do(policy, writing(32 * KIB, bytes(new)), disk)
    reads = [(each.offset, each.end) for each in disk.asked if each.command is Cmd.READ]
    assert reads == [(64 * KIB, 192 * KIB)]
    disk.asked.clear()
    await do(policy, writing(99840, bytes(160)), disk)
    await do(policy, writing(99840, bytes(160) + disk.content[100000:100352]), disk)
    reads = [(each.offset, each.end) for each in disk.asked if each.command is Cmd.READ]
    assert reads == [(99840, 100352)]  # no more than the request, whose blocks they are


async def test_a_fast_zero_does_not_wait_for_reads() -> None:
    policy, disk = protecting("4K+4K", unchanged="allow"), half_zero()
    with pytest.raises(Failed) as failed:
        await do(policy, Request(Cmd.WRITE_ZEROES, 0, 8 * KIB, CmdFlag.FAST_ZERO), disk)
    assert failed.value.error is Errno.ENOTSUP
    assert not disk.asked
    await do(policy, Request(Cmd.WRITE_ZEROES, 0, 4 * KIB, CmdFlag.FAST_ZERO), disk)
    assert [request.command for request in disk.asked] == [Cmd.WRITE_ZEROES]


async def test_what_is_compared_is_read_in_blocks_and_in_pieces() -> None:
    """Wherever the request is aligned so are the reads, and none is long."""
    policy, disk = protecting("100-4194303", unchanged="allow"), Disk(bytearray(8 * MIB))
    await do(policy, Request(Cmd.WRITE_ZEROES, 0, 5 * MIB), disk)
    reads = [(each.offset, each.length) for each in disk.asked if each.command is Cmd.READ]
    assert reads == [(number * MIB, MIB) for number in range(4)]


async def test_a_failing_read_fails_the_write() -> None:
    policy = protecting("0-99", unchanged="allow")
    disk = Disk(fails={Cmd.READ: Errno.EIO})
    with pytest.raises(Failed, match="EIO"):
        await do(policy, writing(0, b"x"), disk)
    assert [request.command for request in disk.asked] == [Cmd.READ]


def test_allowing_bars_nothing_and_hooks_what_writes() -> None:
    policy = protecting("0-9", unchanged="allow")
    assert policy.hooked(view()) == set(WRITES)
    assert not table(policy, view()).rows


places = st.integers(0, 40)


@given(
    st.lists(st.tuples(places, st.integers(1, 20), st.booleans()), min_size=1, max_size=4),
    st.sampled_from(WRITES),
    places,
    st.binary(min_size=1, max_size=20),
    st.binary(min_size=64, max_size=64),
)
def test_refusing_and_comparing_agree_with_a_model(
    ranges: list[tuple[int, int, bool]], command: Cmd, offset: int, data: bytes, content: bytes
) -> None:
    """Byte by byte: what is protected, and whether it would change."""
    content = bytes(byte & 1 for byte in content)
    data = bytes(byte & 1 for byte in data)
    protected = {
        byte
        for start, length, complement in ranges
        for byte in range(64)
        if (start <= byte < start + length) is not complement
    }
    texts = [f"{'~' * complement}{start}+{length}" for start, length, complement in ranges]
    new = data if command is Cmd.WRITE else bytes(len(data))
    touched = protected & set(range(offset, offset + len(data)))
    request = Request(command, offset, len(data), data=data if command is Cmd.WRITE else b"")

    assert (refused(protecting(*texts), request, view(64)) is not None) == bool(touched)

    changed = any(content[byte] != new[byte - offset] for byte in touched)
    disk, policy = Disk(bytearray(content)), protecting(*texts, unchanged="allow")
    if changed:
        with pytest.raises(Failed, match="EPERM"):
            trio.run(do, policy, request, disk)
        assert disk.content == content
    else:
        trio.run(do, policy, request, disk)
        assert all(disk.content[byte] == content[byte] for byte in protected)
        assert disk.content[offset : offset + len(data)] == new
