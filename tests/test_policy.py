"""What policies are written with: values that cannot say what makes no sense."""

from __future__ import annotations

import pytest

from gateway.policy import Cmd, CmdFlag, Flag, Request
from tests.policies.harness import view

WRITE = Request(Cmd.WRITE, 100, 4, int(CmdFlag.FUA), b"data")


def test_a_part_has_its_part_of_the_data() -> None:
    part = WRITE.part(101, 103)
    assert (part.offset, part.length, part.flags) == (101, 2, CmdFlag.FUA)
    assert part.data == b"at"


@pytest.mark.parametrize(("start", "end"), [(99, 104), (100, 105), (103, 102), (0, 4)])
def test_what_is_no_part_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"{start} to {end} is no part of 100 to 104"):
        WRITE.part(start, end)


def test_flags_may_overlap() -> None:
    trims = Flag.SEND_TRIM | Flag.SEND_FUA
    seen = view()
    assert seen.without(trims, Flag.SEND_TRIM).flags == seen.flags & ~trims
    assert seen.without(trims).having(trims, Flag.SEND_FUA) == seen
    both = CmdFlag.FUA | CmdFlag.NO_HOLE
    zero = Request(Cmd.WRITE_ZEROES, 0, 1, int(both | CmdFlag.FAST_ZERO))
    assert zero.without(both, CmdFlag.FUA).flags == CmdFlag.FAST_ZERO
