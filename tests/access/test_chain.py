"""What chains come to: the compiled table, the stages, and that both say the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.access.chain import Compiled, Enlarged, Placed, compile_chain, join
from gateway.policy import (
    RANGED,
    WRITE_CLASS,
    Cmd,
    CmdFlag,
    Denied,
    Errno,
    Failed,
    Flag,
    Next,
    Policy,
    Request,
    Result,
    Session,
    Table,
    View,
)
from gateway.protocol.export import Export, view_of
from gateway.protocol.table import MAX_RANGES
from gateway.quirks import Dialect
from gateway.sessions.promise import plan_of, promise
from gateway.wire.handshake import BlockSizes, MetaContext
from policies.flags import Flags
from policies.readonly import Readonly
from policies.trim import Trim
from tests.policies.harness import ALLOCATION, EVERYTHING, KIB, MIB, session, view

pytestmark = pytest.mark.real

# --- Policies as simple as they can be


class Window(Policy):
    """A part of the export."""

    offset: int
    size: int

    def describe(self, view: View) -> View:
        if self.offset + self.size > view.size:
            raise Denied("no such part")
        return view.window(self.offset, self.size)


class HookedWindow(Window):
    """The same, with a hook: it moves addresses itself."""

    async def each(self, request: Request, behind: Next) -> Result:
        result: Result = await behind(request.moved(self.offset))
        return result


class Protect(Policy):
    """A range that is not written."""

    start: int
    end: int

    def commands(self, table: Table) -> None:
        if self.start < min(self.end, table.size):
            table.protect(self.start, min(self.end, table.size), text="protected")


class Longest(Policy):
    """A longest length of one command."""

    command: Cmd
    longest: int

    def commands(self, table: Table) -> None:
        table.limit_length(self.command, self.longest, text="too long")


class Refuse(Policy):
    """One command less."""

    command: Cmd

    def commands(self, table: Table) -> None:
        table.refuse(self.command, text="refused")


class RefuseFlag(Policy):
    """One command flag less."""

    command: Cmd
    flag: CmdFlag

    def commands(self, table: Table) -> None:
        table.refuse_flag(self.command, self.flag, error=Errno.ENOTSUP, text="refused")


class DropFlag(Policy):
    """A command flag that nobody behind sees."""

    command: Cmd
    flag: CmdFlag

    def commands(self, table: Table) -> None:
        table.drop_flag(self.command, self.flag)


class AddFua(Policy):
    """Write-through."""

    def describe(self, view: View) -> View:
        if not view.allows(Flag.SEND_FUA):
            raise Denied("no FUA to add")
        return view

    def commands(self, table: Table) -> None:
        for command in WRITE_CLASS:
            table.add_flag(command, CmdFlag.FUA)


class AddFuaUnseen(AddFua):
    """Write-through, of which the client sees nothing: FUA is not for it."""

    def describe(self, view: View) -> View:
        return super().describe(view).without(Flag.SEND_FUA)


class Mask(Policy):
    """One transmission flag less."""

    flag: Flag

    def describe(self, view: View) -> View:
        return view.without(self.flag)


class Passing(Policy):
    """Hooks that do nothing."""

    async def each(self, request: Request, behind: Next) -> Result:
        result: Result = await behind(request)
        return result

    async def flush(self, request: Request, behind: Next) -> Result:
        result: Result = await behind(request)
        return result


class WritesZeros(Policy):
    """WRITE_ZEROES where there is none."""

    def describe(self, view: View) -> View:
        if view.allows(Flag.READ_ONLY):
            return view
        return view.having(Flag.SEND_WRITE_ZEROES).without(Flag.SEND_FAST_ZERO)

    def hooked(self, view: View) -> Collection[Cmd]:
        return () if view.allows(Flag.READ_ONLY) else {Cmd.WRITE_ZEROES}

    async def zero(self, request: Request, behind: Next) -> Result:
        flags = request.flags & CmdFlag.FUA
        result: Result = await behind(
            request.instead(Cmd.WRITE, data=bytes(request.length), flags=flags)
        )
        return result


class Larger(Policy):
    """More than there is."""

    hooks: bool = False

    def describe(self, view: View) -> View:
        return replace(view, size=view.size + 1)

    def hooked(self, view: View) -> Collection[Cmd]:
        return RANGED if self.hooks else ()


class Denies(Policy):
    """Nothing at all."""

    text: str = "not here"

    def describe(self, view: View) -> View:
        raise Denied(self.text)


class Broken(Policy):
    """A policy with a bug."""

    def describe(self, view: View) -> View:
        raise ZeroDivisionError("division by zero")


class HalfIfReadOnly(Policy):
    """The first half of what cannot be written, and all of what can."""

    def describe(self, view: View) -> View:
        return view.window(0, view.size // 2) if view.allows(Flag.READ_ONLY) else view


class Many(Policy):
    """Very many ranges that are not written."""

    count: int

    def commands(self, table: Table) -> None:
        for start in range(self.count):
            table.protect(2 * start, 2 * start + 1, text="protected")


def chain(*policies: Policy, observed: Sequence[int] = ()) -> list[Placed]:
    """Policies as the configuration places them; those of some numbers are only observed."""
    return [
        Placed(policy, type(policy).__name__.lower(), number in observed)
        for number, policy in enumerate(policies)
    ]


def barred(compiled: Compiled, command: Cmd) -> list[tuple[int, int]]:
    """Ranges that a command must not touch."""
    return sorted((each.start, each.end) for each in compiled.table[command].barred)


# --- Order, offsets, flags


def test_no_policies() -> None:
    seen = view()
    compiled = compile_chain([], seen)
    assert (compiled.view, compiled.stages, compiled.shadow) == (seen, (), None)
    assert compiled.table == Table(seen.size)


def test_who_refuses_is_known() -> None:
    """By name, wherever a policy stands, for whoever counts refusals by policy."""
    seen = view()
    compiled = compile_chain(
        chain(Protect(start=0, end=8), Readonly(), Refuse(command=Cmd.TRIM)), seen
    )
    refused = compiled.table[Cmd.TRIM].refusal(Cmd.TRIM, 0, 64, 1)
    assert refused is not None
    assert refused.by == "refuse"
    barred = compiled.table[Cmd.WRITE].refusal(Cmd.WRITE, 0, 0, 1)
    assert barred is not None
    assert barred.by == "protect"
    assert compiled.table.read_only_by == "readonly"
    shown = replace(seen, flags=seen.flags | Flag.READ_ONLY)
    assert compile_chain(chain(Readonly()), shown).table.read_only_by == ""  # the server says so


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        # in the client's offsets, nearest to it
        ((Protect(start=0, end=8), Window(offset=64, size=32)), [(0, 8)]),
        # in those of the disk, behind the window
        ((Window(offset=64, size=32), Protect(start=0, end=8)), []),
        ((Window(offset=64, size=32), Protect(start=60, end=72)), [(0, 8)]),
        ((Window(offset=64, size=32), Protect(start=90, end=200)), [(26, 32)]),
        ((Window(offset=64, size=32), Protect(start=96, end=97)), []),
        ((Window(offset=64, size=32), Protect(start=63, end=64)), []),
        # through two of them
        (
            (Window(offset=8, size=8), Window(offset=64, size=32), Protect(start=73, end=75)),
            [(1, 3)],
        ),
        (
            (
                Protect(start=0, end=1),
                Window(offset=8, size=8),
                Protect(start=15, end=99),
                Window(offset=64, size=32),
                Protect(start=74, end=75),
            ),
            [(0, 1), (2, 3), (7, 8)],
        ),
        (
            # what stands behind a hook is for its stage to say: the hook may make another request
            (HookedWindow(offset=64, size=32), Protect(start=60, end=72)),
            [],
        ),
    ],
)
def test_ranges_move_with_windows(policies: tuple[Policy, ...], expected: list[object]) -> None:
    compiled = compile_chain(chain(*policies), view())
    assert barred(compiled, Cmd.WRITE) == expected
    assert barred(compiled, Cmd.READ) == []


def test_a_window_in_a_window() -> None:
    compiled = compile_chain(chain(Window(offset=8, size=8), Window(offset=64, size=32)), view())
    assert (compiled.view.base, compiled.view.size) == (72, 8)
    assert [(stage.behind.base, stage.view.base) for stage in compiled.stages] == [
        (64, 72),
        (0, 64),
    ]


def test_the_nearest_to_the_client_sees_what_the_others_show() -> None:
    denied = chain(Window(offset=0, size=33), Window(offset=64, size=32))
    with pytest.raises(Denied):
        compile_chain(denied, view())
    with pytest.raises(Denied):  # 32 bytes at 64 are not in 33 either
        compile_chain(denied[::-1], view())
    assert compile_chain(denied[1:], view()).view.size == 32


@pytest.mark.parametrize(
    ("policies", "on", "off"),
    [
        ((Readonly(),), Flag.READ_ONLY, Flag(0)),
        ((Mask(flag=Flag.SEND_TRIM),), Flag(0), Flag.SEND_TRIM),
        ((Refuse(command=Cmd.TRIM),), Flag(0), Flag.SEND_TRIM),
        ((Refuse(command=Cmd.FLUSH), Readonly()), Flag.READ_ONLY, Flag.SEND_FLUSH),
        (
            tuple(Refuse(command=command) for command in WRITE_CLASS),
            Flag(0),
            Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES,
        ),
        ((WritesZeros(), Refuse(command=Cmd.WRITE_ZEROES)), Flag.SEND_WRITE_ZEROES, Flag(0)),
    ],
)
def test_flags(policies: tuple[Policy, ...], on: Flag, off: Flag) -> None:
    flags = compile_chain(chain(*policies), view()).view.flags
    assert flags & on == on
    assert not flags & off


def test_who_refuses_all_that_writes_is_read_only() -> None:
    class RefuseWrites(Policy):
        def commands(self, table: Table) -> None:
            table.refuse(*WRITE_CLASS, text="refused")

    assert compile_chain(chain(RefuseWrites()), view()).view.allows(Flag.READ_ONLY)


class Muddled(Policy):
    """Makes a WRITE that is not as long as it says, or begins before the beginning."""

    data: bytes = b""
    distance: int = 0

    async def trim(self, request: Request, behind: Next) -> Result:
        wrong = request.instead(Cmd.WRITE, data=self.data).moved(self.distance)
        result: Result = await behind(wrong)
        return result


@pytest.mark.parametrize(
    ("muddled", "why"),
    [
        (Muddled(), "expected 4 bytes to WRITE, got 0"),
        (Muddled(data=bytes(KIB)), "expected 4 bytes to WRITE, got 1024"),
        (Muddled(data=bytes(4), distance=-1), "0 or more"),
    ],
)
async def test_what_makes_no_sense_goes_no_further(muddled: Policy, why: str) -> None:
    async def bottom(request: Request) -> Result:
        raise AssertionError(f"{request} must not come here")

    compiled = compile_chain(chain(muddled), view())
    with pytest.raises(ValueError, match=why):
        await compiled.do(Request(Cmd.TRIM, 0, 4), bottom)


def test_more_than_there_is_takes_hooks() -> None:
    with pytest.raises(Enlarged, match="larger shows 1048577 bytes of 1048576"):
        compile_chain(chain(Larger()), view())
    assert compile_chain(chain(Larger(hooks=True)), view()).view.size == view().size + 1


def test_who_has_hooks_for_what() -> None:
    compiled = compile_chain(chain(Passing(), WritesZeros(), Readonly()), view())
    assert compiled.hooked[Cmd.WRITE] == "passing"
    compiled = compile_chain(chain(Passing(), WritesZeros()), view())
    assert compiled.hooked[Cmd.WRITE_ZEROES] == "passing, writeszeros"
    assert compile_chain(chain(Readonly()), view()).hooked == {}


# --- What is only observed


def test_what_is_observed_is_not_in_force() -> None:
    compiled = compile_chain(chain(Readonly(), Protect(start=0, end=9), observed=[0, 1]), view())
    assert compiled.view == view()
    assert not compiled.table.rows
    assert compiled.shadow is not None
    assert compiled.shadow.view.allows(Flag.READ_ONLY)
    assert barred(compiled.shadow, Cmd.WRITE) == [(0, 9)]
    assert compiled.would == ()


def test_a_shadow_has_those_in_force_too() -> None:
    policies = Protect(start=0, end=9), Window(offset=64, size=32), Protect(start=70, end=71)
    compiled = compile_chain(chain(*policies, observed=[0]), view())
    assert barred(compiled, Cmd.WRITE) == [(6, 7)]
    assert compiled.shadow is not None
    assert barred(compiled.shadow, Cmd.WRITE) == [(0, 9), (6, 7)]


def test_what_is_observed_behind_a_hook_is_seen() -> None:
    compiled = compile_chain(chain(Passing(), Protect(start=0, end=9), observed=[1]), view())
    assert compiled.shadow is not None
    assert barred(compiled.shadow, Cmd.WRITE) == [(0, 9)]


@pytest.mark.parametrize(
    ("policy", "would"),
    [
        (Denies(), "denies: not here"),
        (Denies(text="denies: not here"), "denies: not here"),
        (Window(offset=64, size=32), "window: 32 bytes from 64 on are shown"),
        (Window(offset=64, size=MIB), "window: no such part"),
        (Larger(), f"larger shows {MIB + 1} bytes of {MIB}"),
        (Larger(hooks=True), f"larger: {MIB + 1} bytes from 0 on are shown"),
        (Broken(), "broken: ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_shadow_cannot_have_is_said(policy: Policy, would: str) -> None:
    compiled = compile_chain(chain(policy, Readonly(), observed=[0, 1]), view())
    assert compiled.would == (would,)
    assert compiled.shadow is not None
    assert compiled.shadow.view == view().having(Flag.READ_ONLY)


TRIMLESS = view().without(Flag.SEND_TRIM)
NEEDS_TRIM = Flags(require=[Flag.SEND_TRIM])
REQUIRED = "flags: SEND_TRIM is required here, and the export has"


def test_what_is_observed_denies_nothing_at_its_own_place() -> None:
    """What the client is shown has TRIM; what is behind `trim` has none, and there `flags` stands."""
    compiled = compile_chain(chain(Trim(how="zero"), NEEDS_TRIM, observed=[1]), TRIMLESS)
    assert compiled.view.allows(Flag.SEND_TRIM)
    [would] = compiled.would
    assert would.startswith(REQUIRED)


def test_what_is_observed_is_judged_at_its_own_place() -> None:
    masked = chain(Flags(mask=[Flag.SEND_TRIM]), NEEDS_TRIM, observed=[1])
    assert compile_chain(masked, view()).would == ()
    before = chain(Window(offset=64, size=32), Window(offset=0, size=MIB), observed=[1])
    assert compile_chain(before, view()).would == ()
    behind = chain(Window(offset=0, size=32), Window(offset=64, size=32), observed=[0])
    assert compile_chain(behind, view()).would == ()


def test_one_in_force_may_not_take_what_is_observed() -> None:
    policies = Protect(start=0, end=9), NEEDS_TRIM, Trim(how="none")
    compiled = compile_chain(chain(*policies, observed=[0, 2]), view())
    assert compiled.view == view()
    [would] = compiled.would
    assert would.startswith(f"with trim in force, {REQUIRED}")
    assert compiled.shadow is not None
    assert compiled.shadow.view == view()
    assert barred(compiled.shadow, Cmd.WRITE) == [(0, 9)]


def test_one_in_force_may_show_something_else_before_what_is_observed() -> None:
    policies = HalfIfReadOnly(), Readonly()
    compiled = compile_chain(chain(*policies, observed=[1]), view())
    assert compiled.view == view()
    assert compiled.would == (
        f"with readonly in force, halfifreadonly: {MIB // 2} bytes from 0 on are shown",
    )
    assert compiled.shadow is not None
    assert compiled.shadow.view == view()


def test_more_ranges_than_a_table_holds_cost_no_client_the_export() -> None:
    """One of the policies alone would not have too many, and those that a hook parts count apart."""
    half = MAX_RANGES // 2 + 1
    compiled = compile_chain(chain(Many(count=half), Many(count=half), observed=[0]), view())
    assert compiled.would == ("many: ValueError: more than 1024 ranges",)
    parted = chain(Many(count=half), Passing(), Many(count=half), Readonly(), observed=[3])
    compiled = compile_chain(parted, view())
    assert compiled.would == ("with readonly in force, many: ValueError: more than 1024 ranges",)


# --- Taking part


def test_a_bug_of_one_that_is_observed_keeps_nobody_out() -> None:
    class Miscounts(Policy):
        def join(self, session: Session) -> Policy:
            raise ZeroDivisionError("division by zero")

    membership = join(chain(Miscounts(), Readonly(), observed=[0]), session())
    assert membership.would == ["miscounts: ZeroDivisionError: division by zero"]
    with pytest.raises(ZeroDivisionError):
        join(chain(Miscounts(), Readonly()), session())


def test_who_has_joined_leaves_when_another_one_denies() -> None:
    heard: list[str] = []

    class Member(Policy):
        name: str
        refuses: bool = False

        def join(self, session: Session) -> Policy:
            heard.append(f"join {self.name}")
            if self.refuses:
                raise Denied("full")
            return self

        def leave(self, session: Session) -> None:
            heard.append(f"leave {self.name}")

    full = [Member(name="a"), Member(name="b"), Member(name="c", refuses=True), Member(name="d")]
    with pytest.raises(Denied, match="full"):
        join(chain(*full), session())
    assert heard == ["join a", "join b", "join c", "leave b", "leave a"]
    heard.clear()
    membership = join(chain(*full, observed=[2]), session())
    assert membership.would == ["member: full"]
    assert [each.policy for each in membership.chain] == [full[0], full[1], full[3]]
    membership.leave()
    membership.leave()
    assert heard[4:] == ["leave d", "leave b", "leave a"]


# --- The offer and the data plane agree

SIZE = 64 * KIB
BLOCK = 512

FLAGS: dict[Cmd, tuple[CmdFlag, ...]] = {
    Cmd.READ: (CmdFlag.DF,),
    Cmd.WRITE: (CmdFlag.FUA,),
    Cmd.TRIM: (CmdFlag.FUA,),
    Cmd.WRITE_ZEROES: (CmdFlag.FUA, CmdFlag.NO_HOLE, CmdFlag.FAST_ZERO),
    Cmd.CACHE: (),
    Cmd.BLOCK_STATUS: (CmdFlag.REQ_ONE,),
    Cmd.FLUSH: (),
}
"""Command flags that mean something to a command."""

EDGES = (0, BLOCK, 8 * KIB, 16 * KIB, SIZE // 2, SIZE)
"""Where ranges begin and end."""

POOL: tuple[Policy, ...] = (
    Readonly(),
    Window(offset=0, size=SIZE // 2),
    Window(offset=8 * KIB, size=16 * KIB),
    HookedWindow(offset=8 * KIB, size=16 * KIB),
    Protect(start=0, end=BLOCK),
    Protect(start=16 * KIB, end=SIZE),
    *(Longest(command=command, longest=8 * KIB) for command in (Cmd.READ, Cmd.WRITE_ZEROES)),
    *(Refuse(command=command) for command in (Cmd.READ, *WRITE_CLASS, Cmd.FLUSH)),
    *(RefuseFlag(command=c, flag=flag) for c, flags in FLAGS.items() for flag in flags),
    *(DropFlag(command=c, flag=flag) for c, flags in FLAGS.items() for flag in flags),
    AddFua(),
    AddFuaUnseen(),
    *(
        Mask(flag=flag)
        for flag in (
            *(Flag.SEND_TRIM, Flag.SEND_CACHE, Flag.SEND_WRITE_ZEROES, Flag.SEND_FAST_ZERO),
            *(Flag.SEND_FLUSH, Flag.SEND_FUA, Flag.SEND_DF),
        )
    ),
    Passing(),
    WritesZeros(),
)


def export(flags: int = EVERYTHING, block_sizes: BlockSizes | None = None) -> Export:
    """An export of a server that can do everything, with one context."""
    contexts = (MetaContext(7, ALLOCATION),)
    return Export(SIZE, flags, block_sizes, structured=True, extended=True, contexts=contexts)


async def check(
    stack: Sequence[Policy], export: Export, any_alignment: bool, ranges: Sequence[tuple[int, int]]
) -> None:
    """What goes by the table, and what goes through all stages: the same requests are refused, and the others
    reach the same place with the same flags.
    """
    try:
        compiled = compile_chain(chain(*stack), view_of(export, any_alignment=any_alignment))
    except Denied:
        return
    selected = (MetaContext(1, ALLOCATION),)
    offered = promise(compiled, structured=True, extended=True, selected=selected)
    plan = plan_of(compiled, offered, export, Dialect())
    for command, known in FLAGS.items():
        for chosen in (c for n in range(len(known) + 1) for c in combinations(known, n)):
            flags = sum(chosen)
            word = flags << 16 | command
            for at, count in ranges if command in RANGED else [(0, 0)]:
                request = Request(command, at, count, flags, bytes(count), (ALLOCATION,))
                staged = await upstream(compiled, request)
                if plan.refusal(word, at, count) is not None:
                    assert staged is None, request
                    continue
                request = replace(request, flags=plan.rules[word].flags)
                if command in plan.hooked:
                    assert await upstream(compiled, request) == staged, request
                else:
                    base = offered.base if command in RANGED else 0
                    assert staged == (command, at + base, count, request.flags), request


RANGES = [(0, BLOCK), (0, 8 * KIB + 1), (8 * KIB, 8 * KIB), (16 * KIB - 1, 2), (SIZE, 1)]


@pytest.mark.parametrize(
    "first", POOL, ids=[f"{type(each).__name__}({each})".lower() for each in POOL]
)
async def test_offer_and_data_plane_agree_for_two_policies(first: Policy) -> None:
    for second in POOL:
        await check([first, second], export(), True, RANGES)


edges = st.sampled_from(EDGES)
lengths = st.tuples(edges, edges, st.sampled_from([0, 1]), st.sampled_from([0, 0, 1])).map(
    lambda each: (each[0] + each[2], max(1, each[1] - each[3]))
)
stacks = st.lists(
    st.sampled_from(POOL)
    | st.builds(Window, offset=edges, size=edges)
    | st.builds(HookedWindow, offset=edges, size=edges)
    | st.builds(Protect, start=edges, end=edges),
    min_size=1,
    max_size=4,
)
exports = st.builds(
    export,
    st.sampled_from([EVERYTHING, EVERYTHING & ~Flag.SEND_FUA, EVERYTHING | Flag.READ_ONLY]),
    st.sampled_from([None, BlockSizes(BLOCK, 4096, 32 << 20)]),
)


@given(stacks, exports, st.booleans(), st.lists(lengths, min_size=1, max_size=4))
@settings(max_examples=2 * settings().max_examples, deadline=None)
async def test_offer_and_data_plane_agree_for_more(
    stack: list[Policy],
    export: Export,
    any_alignment: bool,
    ranges: list[tuple[int, int]],
) -> None:
    await check(stack, export, any_alignment, ranges)


async def upstream(compiled: Compiled, request: Request) -> tuple[Cmd, int, int, int] | None:
    """What comes of a request that goes through all stages; None: it is refused."""
    asked: list[Request] = []

    async def bottom(request: Request) -> Result:
        asked.append(request)
        assert request.command not in RANGED or request.end <= SIZE
        return None

    try:
        await compiled.do(request, bottom)
    except Failed:
        assert not asked
        return None
    [each] = asked
    return each.command, each.offset, each.length, each.flags
