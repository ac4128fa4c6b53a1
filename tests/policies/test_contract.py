"""What every policy keeps to, whoever wrote it: each that is installed, with the options of its own example.

A policy of your own is held to the same by being installed where this runs; docs/writing-a-policy.md says how
to run it on one alone.
"""

from __future__ import annotations

import ast
import inspect
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.access.loading import catalogue
from gateway.policy import (
    HOOK_OF,
    RANGED,
    Cmd,
    Denied,
    Errno,
    Failed,
    Next,
    Policy,
    Request,
    Result,
    Table,
    View,
)
from tests.policies import examples as examples_of
from tests.policies.examples import docstring, examples
from tests.policies.harness import ALLOCATION, KIB, MIB, Disk, configured, session, view

pytestmark = pytest.mark.real

NAMES = [*catalogue().names()]
SIZE = 64 * MIB
"""Large enough for what examples say of a disk's ranges, and small enough to be made for each case."""
UNIT = 64 * KIB
"""What offsets and lengths are multiples of, the largest that a minimum block can be: what a policy does with
parts of blocks is for its own tests.
"""

every_policy = pytest.mark.parametrize("name", NAMES)
# Each case makes its own state; the fixtures (a clock) have none that a case could change.
a_law = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- What stands in the file


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples_of, "FOLDER", tmp_path)


def made(name: str) -> list[Policy]:
    policy = catalogue().find(name)
    return [configured(policy, options) for options in examples(name)]


@every_policy
def test_the_first_line_is_a_sentence(name: str) -> None:
    first, *rest = docstring(name).splitlines()
    assert first.endswith("."), first
    assert ". " not in first
    assert first[0].isupper()
    assert rest[:1] == [""], "an empty line follows it"


@every_policy
def test_its_example_is_a_configuration_of_it(name: str) -> None:
    assert examples(name), (
        'the docstring says more, and has indented: policies = [ { use = "NAME" } ]'
    )
    assert made(name)


@every_policy
def test_an_unknown_option_is_refused(name: str) -> None:
    policy = catalogue().find(name)
    with pytest.raises(ValidationError, match="xyzzy"):
        configured(policy, {**examples(name)[0], "xyzzy": 1})


@every_policy
def test_every_option_is_described(name: str) -> None:
    assert all(each.description for each in catalogue().find(name).model_fields.values())


@every_policy
def test_it_imports_the_api_and_nothing_else_of_the_gateway(name: str) -> None:
    tree = ast.parse(inspect.getsource(sys.modules[catalogue().find(name).__module__]))
    imported = {
        module
        for node in ast.walk(tree)
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert {each for each in imported if each.split(".")[0] == "gateway"} <= {"gateway.policy"}


# --- What it does with an export


class Zeroes(Disk):
    """A disk that holds nothing but zeroes: that a policy keeps content is for its own tests."""

    def __init__(self) -> None:
        super().__init__(content=bytearray())

    async def __call__(self, request: Request) -> Result:
        self.asked.append(request)
        assert request.end <= SIZE, request
        if request.command in self.fails:
            raise Failed(self.fails[request.command])
        match request.command:
            case Cmd.READ:
                return bytes(request.length)
            case Cmd.WRITE:
                assert len(request.data) == request.length
            case Cmd.BLOCK_STATUS:
                return {name: [(request.length, 0)] for name in request.contexts}
        return None


class Stand:
    """A policy where it stands: before a view, for a session."""

    def __init__(self, policy: Policy, before: View) -> None:
        self.before, self.policy = before, policy
        self.shown = policy.describe(before)
        self.table = Table(before.size)
        self.table.move(self.shown.base - before.base, self.shown.size)
        policy.commands(self.table)
        self.hooked = frozenset(policy.hooked(before))

    async def do(self, request: Request, next: Next) -> Result:
        """What the data plane does with a request that the offer allows."""
        row = self.table[request.command]
        refused = row.refusal(request.command, request.flags, request.offset, request.length)
        if refused is not None:
            raise Failed(refused.error, refused.text)
        request = replace(request, flags=row.passed_flags(request.flags))
        if request.command in self.hooked:
            # Hooks take offsets of the view that they gave, and hand on those of the one before.
            result: Result = await getattr(self.policy, HOOK_OF[request.command])(request, next)
        else:
            result = await next(request.moved(self.shown.base - self.before.base))
        return result


async def standing(name: str, before: View) -> list[Stand]:
    """Each example of a policy, opened by a session; one that does not let it in has nothing to be held to."""
    found = []
    for policy in made(name):
        try:
            taken = policy.join(session())
            found.append(Stand(await taken.prepare(before, Zeroes()), before))
        except (Denied, Failed):
            continue
    return found


@every_policy
async def test_describe_gives_a_part_of_the_disk(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    for before in (view(SIZE), view(SIZE, contexts=frozenset()), replace(view(SIZE), base=MIB)):
        for stand in await standing(name, before):
            shown = stand.shown
            assert shown.size >= 0
            assert shown.base >= before.base
            if (
                not stand.hooked >= RANGED
            ):  # else it may make up what is behind the end, as truncate does
                assert shown.base - before.base + shown.size <= before.size
            assert shown.contexts <= before.contexts
            assert stand.policy.describe(before) == shown, "asked again, it says the same"
            assert stand.hooked <= HOOK_OF.keys()


@every_policy
async def test_each_hook_is_one_that_it_has(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    for stand in await standing(name, view(SIZE)):
        own = {
            hook
            for hook in (*HOOK_OF.values(), "each")
            if getattr(type(stand.policy), hook) is not getattr(Policy, hook)
        }
        for command in stand.hooked:
            assert HOOK_OF[command] in own or ("each" in own and command in RANGED), command


def request_of(command: Cmd, offset: int, length: int) -> Request:
    match command:
        case Cmd.FLUSH:
            return Request(command)
        case Cmd.WRITE:
            return Request(command, offset, length, data=b"\x5a" * length)
        case Cmd.BLOCK_STATUS:
            return Request(command, offset, length, contexts=(ALLOCATION,))
    return Request(command, offset, length)


async def reached(stand: Stand, request: Request, disk: Zeroes) -> set[tuple[int, int]] | None:
    """The bytes that the command itself reached upstream, as ranges put together; None: it failed, or was
    answered without the disk.
    """
    disk.asked.clear()
    try:
        result = await stand.do(request, disk)
    except Failed:
        return None
    if request.command is Cmd.READ:
        assert isinstance(result, bytes | bytearray | memoryview)
        assert len(result) == request.length
    elif request.command is Cmd.BLOCK_STATUS:
        assert isinstance(result, dict)
        assert set(result) == set(request.contexts)
        assert all(sum(length for length, _ in each) > 0 for each in result.values())
    else:
        assert result is None
    ranges = {(each.offset, each.end) for each in disk.asked if each.command is not Cmd.FLUSH}
    for each in ranges:
        assert 0 <= each[0] <= each[1] <= stand.before.size
    return ranges or None


@every_policy
@a_law
@given(data=st.data())
async def test_all_commands_for_a_range_reach_the_same_range(
    name: str, autojump_clock: trio.testing.MockClock, data: st.DataObject
) -> None:
    for stand in await standing(name, view(SIZE)):
        units = stand.shown.size // UNIT
        if units == 0:
            continue
        first = data.draw(st.integers(0, units - 1))
        count = data.draw(st.integers(1, min(16, units - first)))
        offset, length = first * UNIT, count * UNIT
        start = stand.shown.base - stand.before.base + offset
        disk = Zeroes()
        for command in sorted(RANGED):
            ranges = await reached(stand, request_of(command, offset, length), disk)
            if ranges is None:
                continue
            # Nothing outside: a TRIM of less is a hint that was not taken, a WRITE elsewhere is damage.
            low, high = min(first for first, _ in ranges), max(end for _, end in ranges)
            assert start <= low
            assert high <= start + length
            # What a READ does not reach was made up; what a WRITE does not reach is lost.
            if command is Cmd.WRITE and start + length <= SIZE:
                assert (low, high) == (start, start + length)


@every_policy
async def test_the_whole_of_what_is_described_can_be_used(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Its first and its last block, and nothing asserts on the way."""
    for stand in await standing(name, view(SIZE)):
        disk = Zeroes()
        unit = min(UNIT, stand.shown.size)
        for offset in {0, stand.shown.size - unit} if unit else ():
            for command in sorted(RANGED):
                await reached(stand, request_of(command, offset, unit), disk)
            await reached(stand, request_of(Cmd.FLUSH, 0, 0), disk)


@every_policy
async def test_what_fails_behind_it_fails(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    for stand in await standing(name, view(SIZE)):
        for command in stand.hooked:
            disk = Zeroes()
            disk.fails = dict.fromkeys(Cmd, Errno.ENOMEM)
            request = request_of(command, 0, min(UNIT, stand.shown.size))
            error = None
            try:
                with trio.fail_after(LONGEST_OWN_WAIT_SECONDS):
                    await stand.do(request, disk)
            except Failed as failure:
                error = failure.error
            # What is made up here does not fail so, and a hint may be dropped.
            if disk.asked:
                hint = command in (Cmd.TRIM, Cmd.CACHE)
                assert error is Errno.ENOMEM or (hint and error is None)


class Blocking:
    """A `next` that waits at its nth call until it is let go on."""

    def __init__(self, disk: Disk, at: int) -> None:
        self.disk, self.at, self.calls = disk, at, 0
        self.blocked, self.released = trio.Event(), 0

    async def __call__(self, request: Request) -> Result:
        self.calls += 1
        if self.calls == self.at:
            self.blocked.set()
            try:
                await trio.sleep_forever()
            finally:
                self.released += 1
        return await self.disk(request)


MOST_CALLS = 4
"""Of `next`, for one block, after which no policy is expected to do anything new."""


@every_policy
async def test_a_command_may_be_cancelled_wherever_it_waits(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    for command in HOOK_OF:
        for at in range(MOST_CALLS + 1):
            for stand in await standing(name, view(SIZE)):
                disk = Zeroes()
                await _cancelled(stand, request_of(command, 0, UNIT), disk, at)
                await works_as_ever(stand, request_of(command, 0, UNIT))


async def _cancelled(stand: Stand, request: Request, disk: Disk, at: int) -> None:
    """Cancel a request at its nth call of `next`, or (0) at the first await of its own."""
    blocking = Blocking(disk, at)
    tasks = trio.lowlevel.current_statistics().tasks_living
    scope = trio.CancelScope()

    async def ask() -> None:
        with scope, suppress(Failed):
            await stand.do(request, blocking)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        # Until it waits for something, or is done: with a clock that jumps, also what only sleeps is.
        await trio.testing.wait_all_tasks_blocked()
        if at == 0:
            scope.cancel()
        else:
            with trio.move_on_after(LONGEST_OWN_WAIT_SECONDS):
                await blocking.blocked.wait()
            scope.cancel()
        cancelled_at = trio.current_time()
    assert trio.current_time() == cancelled_at, "cancelled, it goes on waiting"
    assert blocking.released == blocking.blocked.is_set()
    assert trio.lowlevel.current_statistics().tasks_living == tasks


LONGEST_OWN_WAIT_SECONDS = 7200
"""No example makes a command wait longer by itself."""


async def works_as_ever(stand: Stand, request: Request) -> None:
    """What was cancelled holds nothing that the next one needs."""
    with trio.fail_after(LONGEST_OWN_WAIT_SECONDS):
        await reached(stand, request, Zeroes())


# --- What it does with sessions


@every_policy
async def test_sessions_come_and_go(name: str, autojump_clock: trio.testing.MockClock) -> None:
    """More often than any limit allows at a time, each leaving before the next comes."""
    for policy in made(name):
        let_in = set()
        for _ in range(SESSIONS):
            one = session()
            try:
                own = policy.join(one)
            except Denied:
                let_in.add(False)
                continue
            let_in.add(True)
            own.charges(one)
            policy.leave(one)
        assert len(let_in) == 1, "what one has left is there for the next"
        policy.retire()


SESSIONS = 100
"""More than the limits in examples."""


@every_policy
async def test_who_asks_is_told_what_it_would_get(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """ "If a client sends INFO and then GO, the information MUST be the same", and asking counts nothing."""
    before = view(SIZE)
    for policy in made(name):
        told: list[View | None] = []
        for hook in (*[policy.peek] * SESSIONS, policy.join):
            try:
                ready = await hook(session()).prepare(before, Zeroes())
                told.append(ready.describe(before))
            except Denied:
                told.append(None)
        assert told == [told[0]] * len(told)


@every_policy
async def test_a_reload_changes_nothing_that_was_shown(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    before, after = await standing(name, view(SIZE)), await standing(name, view(SIZE))
    for old, new in zip(before, after, strict=True):
        new.policy.inherit(old.policy)
        old.policy.retire()
        assert new.policy.describe(new.before) == old.shown
