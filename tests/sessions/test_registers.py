"""Any schedule of sessions before one disk keeps every promise that a disk makes; see `registers`."""

from __future__ import annotations

import pytest

from tests.sessions import registers
from tests.sessions.registers import NEVER, SIZE, Broken, History, Write
from tests.tools.shares import batches

SCHEDULES = 300
BATCH = 50


@pytest.mark.parametrize("first", batches(SCHEDULES, BATCH, ordinary=BATCH))
def test_schedules(first: int) -> None:
    """`python -m tests.fuzz --seed N` runs one of them again."""
    for seed in range(first, first + BATCH):
        try:
            registers.run(seed)
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")


def test_schedules_in_which_sessions_are_held() -> None:
    """They are, and links are exchanged."""
    worlds = [registers.World(seed) for seed in range(40)]
    for world in worlds:
        world.run()
        world.close()
    assert sum(world.held for world in worlds) > 100
    assert sum(world.relinked for world in worlds) > 40


def test_schedules_in_which_links_die() -> None:
    """They do, and sessions go back to links of their own."""
    worlds = [registers.World(seed) for seed in range(40)]
    for world in worlds:
        world.run()
        world.close()
    assert sum(world.lost for world in worlds) > 50
    assert sum(world.returned for world in worlds) > 20


def test_schedules_in_which_replies_are_early() -> None:
    """They are, with yes and with no, and nobody is told too soon."""
    worlds = [registers.World(seed) for seed in range(60)]
    for world in worlds:
        world.run()
        world.close()
    early = [world.early for world in worlds if world.early is not None]
    assert sum(each.replies for each in early if each.says_yes) > 20
    assert sum(each.replies for each in early if not each.says_yes) > 1


# --- The model itself


def history(*writes: Write) -> History:
    made = History()
    made.writes += writes
    return made


READS = {
    # a WRITE of 1, one of 2, when a READ begins and ends, and what it may be given
    "in order": (Write(0, 8, 1, 1, 2), Write(0, 8, 2, 3, 4), (5, 6), {2}),
    "the second concurrent with the READ": (
        Write(0, 8, 1, 1, 2),
        Write(0, 8, 2, 3, 9),
        (5, 6),
        {1, 2},
    ),
    "concurrent with each other": (Write(0, 8, 1, 1, 4), Write(0, 8, 2, 2, 3), (5, 6), {1, 2}),
    "the second later than the READ": (Write(0, 8, 1, 1, 2), Write(0, 8, 2, 7, 8), (5, 6), {1}),
    "the second elsewhere": (Write(0, 8, 1, 1, 2), Write(4, 8, 2, 3, 4), (5, 6), {1}),
    "the second failed": (Write(0, 8, 1, 1, 2), Write(0, 8, 2, 3, NEVER), (5, 6), {1, 2}),
    "the first failed": (Write(0, 8, 1, 1, NEVER), Write(0, 8, 2, 3, 4), (5, 6), {1, 2}),
    "the second a TRIM": (
        Write(0, 8, 1, 1, 2),
        Write(0, 8, 2, 3, 4, certain=False),
        (5, 6),
        {1, 2},
    ),
    "both concurrent with the READ": (
        Write(0, 8, 1, 5, 7),
        Write(0, 8, 2, 6, 8),
        (4, 9),
        {0, 1, 2},
    ),
}


@pytest.mark.parametrize(("one", "other", "read", "allowed"), READS.values(), ids=READS)
def test_what_may_be_read(
    one: Write, other: Write, read: tuple[int, int], allowed: set[int]
) -> None:
    made = history(one, other)
    assert {value for value in range(4) if made.may_be_read(0, value, *read)} == allowed


def test_what_has_to_last() -> None:
    one, other = Write(0, 2, 1, 1, 2), Write(1, 3, 2, 3, 4)
    made = history(one, other)
    rest = bytes(SIZE - 3)
    made.check_durable(one, b"\1\2\2" + rest, "FUA")
    made.check_durable(one, b"\1\1\0" + rest, "FUA")  # the other need not
    made.check_durable(other, b"\0\2\2" + rest, "FUA")
    with pytest.raises(Broken, match="FUA: byte 0 is 0"):
        made.check_durable(one, b"\0\2\2" + rest, "FUA")
    with pytest.raises(Broken, match="FLUSH: byte 1 is 1"):
        made.check_durable(other, b"\1\1\2" + rest, "FLUSH")
