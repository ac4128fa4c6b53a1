"""What a table that many policies fill says of command flags is what their own tables say one after another."""

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.table import Table
from gateway.wire.constants import Cmd, CmdFlag, Errno

ZEROES = Cmd.WRITE_ZEROES
FLAGS = (CmdFlag.FUA, CmdFlag.NO_HOLE, CmdFlag.FAST_ZERO)
Said = tuple[Literal["refuse", "drop", "add"], CmdFlag]


def fill(table: Table, said: Said) -> None:
    what, flag = said
    if what == "refuse":
        table.refuse_flag(ZEROES, flag, error=Errno.ENOTSUP, text="not here")
    elif what == "drop":
        table.drop_flag(ZEROES, flag)
    else:
        table.add_flag(ZEROES, flag)


def passed(table: Table, flags: int) -> int | None:
    """The command flags that go on; None: it is refused."""
    row = table[ZEROES]
    return None if row.refusal(ZEROES, flags, 0, 512) else row.passed_flags(flags)


SAID = st.tuples(st.sampled_from(["refuse", "drop", "add"]), st.sampled_from(FLAGS))


@given(from_the_client=st.lists(SAID, max_size=6), chosen=st.sets(st.sampled_from(FLAGS)))
def test_one_table_is_as_many(from_the_client: list[Said], chosen: set[CmdFlag]) -> None:
    together = Table(512)
    for said in reversed(from_the_client):
        fill(together, said)
    going: int | None = sum(chosen)
    for said in from_the_client:
        if going is not None:
            alone = Table(512)
            fill(alone, said)
            going = passed(alone, going)
    assert passed(together, sum(chosen)) == going
