"""What the gateway has started ends with it (`gateway.net.keeper`, `gateway.net.keeping`): real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import structlog
import trio

from gateway.net import keeper
from gateway.net.keeper import Process, ending, of_session, of_tree, seen
from gateway.net.keeping import PROGRAM, Keeper
from tests.net.children import children, lives, until

pytestmark = pytest.mark.real

HOST = """
import os, sys, trio
from gateway.net.keeping import Keeper

async def main():
    async with trio.open_nursery() as nursery:
        keeper = Keeper(nursery)
        for kind in sys.argv[2:]:
            print(keeper.start(kind, ["sh", "-c", sys.argv[1]]).number, flush=True)
        print("all", *(each for each in open(f"/proc/{os.getpid()}/task/{os.getpid()}/children")), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
"""A process that has started others, as the gateway does: it says their numbers."""

TWO = "sleep 600 & sleep 600 & wait"
STUBBORN = "trap '' TERM; sleep 600 & sleep 600 & wait"


@contextmanager
def host(script: str, *kinds: str) -> Iterator[tuple[subprocess.Popen[str], list[int], int]]:
    """Give a host, the numbers of what it has started, and that of its keeper. All ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, script, *kinds],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    started: list[int] = []
    guard = 0
    try:
        for line in process.stdout:
            if line.startswith("all"):
                [guard] = set(map(int, line.split()[1:])) - set(started)
                break
            started.append(int(line))
        yield process, started, guard
    finally:
        process.kill()
        end([find(number) for number in started for find in (of_session, of_tree)])
        with suppress(ProcessLookupError):
            os.kill(guard, signal.SIGKILL)
        process.communicate()


async def family(number: int, count: int) -> list[int]:
    """Wait until a process has so many children, and give all of them."""
    await until(lambda: len(children(number)) == count)
    return [number, *children(number)]


def ignored(number: int) -> int:
    """Give the mask of what a process ignores (proc(5), SigIgn)."""
    return int(Path(f"/proc/{number}/status").read_text().partition("SigIgn:")[2].split()[0], 16)


@pytest.mark.parametrize("kind", ["session", "tree"])
async def test_whatever_was_started_ends_when_the_gateway_is_killed(kind: str) -> None:
    with host(TWO, kind, kind) as (process, [first, second], guard):
        numbers = [*await family(first, 2), *await family(second, 2)]
        assert all(map(lives, numbers))
        process.kill()
        await until(lambda: not any(map(lives, [*numbers, guard])))
        assert process.stderr is not None
        said = await trio.to_thread.run_sync(process.stderr.read)
        assert said == (
            f"nbd-gateway: the gateway (pid {process.pid}) has gone; ended what it had started:"
            f" pid {first}, {second}\n"
        )


async def test_what_does_not_end_by_sigterm_is_killed() -> None:
    with host(STUBBORN, "session") as (process, [number], _guard):
        numbers = await family(number, 2)
        process.kill()
        await until(lambda: not any(map(lives, numbers)))


async def test_a_session_ends_although_its_leader_has() -> None:
    with host(TWO, "session") as (process, [number], _guard):
        [_, *others] = await family(number, 2)
        os.kill(number, signal.SIGKILL)
        await until(lambda: not lives(number))
        assert all(map(lives, others))
        process.kill()
        await until(lambda: not any(map(lives, others)))


async def test_it_is_kept_from_its_first_moment(tmp_path: Path) -> None:
    """Nobody but itself says that it is there; and nobody has died before it is told of."""
    theirs, ours = os.pipe()
    guard = subprocess.Popen([*PROGRAM, "keep", "1"], stdin=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    with subprocess.Popen(
        [*PROGRAM, "launch", "session", str(ours), "-1", "sleep", "600"],
        pass_fds=(ours,),
        start_new_session=True,
    ) as started:
        os.close(ours)
        await trio.to_thread.run_sync(started.wait)
    assert started.returncode == -signal.SIGTERM
    _, said = await trio.to_thread.run_sync(guard.communicate)
    assert str(started.pid) in said.decode()


async def test_who_cannot_be_told_of_does_not_start() -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    done = subprocess.run(
        [*PROGRAM, "launch", "session", str(ours), "-1", "sleep", "600"],
        pass_fds=(ours,),
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(ours)
    assert done.returncode == keeper.CANNOT_START
    assert done.stderr == b"nbd-gateway: cannot start sleep: Broken pipe\n"


async def test_another_keeper_knows_of_all_that_there_is() -> None:
    with host(TWO, "session", "tree") as (process, [first, second], guard):
        numbers = [*await family(first, 2), *await family(second, 2)]
        os.kill(guard, signal.SIGKILL)
        await until(lambda: set(children(process.pid)) - {first, second, guard})
        [another] = set(children(process.pid)) - {first, second, guard}
        assert all(map(lives, numbers))
        process.kill()
        await until(lambda: not any(map(lives, [*numbers, another])))


async def test_the_keeper_outlives_what_a_service_or_a_terminal_is_ended_by() -> None:
    with host(TWO, "session") as (process, [number], guard):
        numbers = await family(number, 2)
        spared = [signal.Signals[name] for name in keeper.SPARED]
        await until(lambda: all(ignored(guard) >> each - 1 & 1 for each in spared))
        for each in spared:
            os.kill(guard, each)
        assert os.getsid(guard) == guard
        process.kill()
        await until(lambda: not any(map(lives, [*numbers, guard])))


async def test_what_has_ended_is_forgotten_and_the_keeper_goes_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, others = descriptors(), set(children(os.getpid()))
    async with trio.open_nursery() as nursery:
        made = Keeper(nursery)
        kept = made.start("session", ["sh", "-c", "exit 3"])
        assert await kept.wait() == 3
        again = made.start("tree", ["sleep", "600"])
        [guard] = set(children(os.getpid())) - others - {kept.number, again.number}
        assert await made.end(kept)
        assert await made.end(again)
        assert again.status == -signal.SIGTERM
        await made.aclose()
    assert guard not in children(os.getpid())
    assert set(children(os.getpid())) == others
    assert descriptors() == before
    assert capfd.readouterr().err == ""


async def test_a_keeper_that_is_killed_is_told_of_in_the_log() -> None:
    others = set(children(os.getpid()))
    async with trio.open_nursery() as nursery:
        made = Keeper(nursery)
        made.log = structlog.get_logger()
        kept = made.start("session", ["sleep", "600"])
        [guard] = set(children(os.getpid())) - others - {kept.number}
        os.kill(guard, signal.SIGKILL)
        with structlog.testing.capture_logs() as said:
            await until(lambda: said)
        status = -signal.SIGKILL
        assert said == [
            {"event": "keeper ended, another is begun", "log_level": "error", "pid": guard}
            | {"status": status}
        ]
        await until(lambda: len(set(children(os.getpid())) - others) == 2)
        await made.end(kept)
        await made.aclose()


# --- What belongs together


def started(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script], start_new_session=True)


def numbers_of(found: list[Process]) -> set[int]:
    return {each.number for each in found}


async def test_a_tree_keeps_those_whose_parent_ends() -> None:
    with started("(sleep 600 & sleep 600 & wait) & sleep 600 & wait") as root:
        await until(lambda: len(children(root.pid)) == 2)
        await until(lambda: any(map(children, children(root.pid))))
        [inner] = [each for each in children(root.pid) if children(each)]
        leaves = await family(inner, 2)
        find = of_tree(root.pid)
        assert numbers_of(find(seen())) == {root.pid, *children(root.pid), *leaves}
        os.kill(inner, signal.SIGKILL)
        await until(lambda: not lives(inner))
        assert set(leaves[1:]) <= numbers_of(find(seen()))
        assert numbers_of(of_tree(root.pid)(seen())).isdisjoint(leaves)
        end([find])
        await until(lambda: not any(map(lives, [root.pid, *leaves])))


def end(finds: list[keeper.Find]) -> list[float]:
    """End all at once, whatever is to be waited for; give for how long that would have been."""
    pauses = []
    for seconds in ending(finds):
        pauses.append(seconds)
        os.sched_yield()
    return pauses


async def test_how_long_what_does_not_end_is_waited_for() -> None:
    with started(STUBBORN) as root:
        numbers = await family(root.pid, 2)
        steps = ending([of_session(root.pid)])
        waited = 0.0
        while waited < keeper.STOP_SECONDS:
            waited += next(steps)
        assert all(map(lives, numbers))  # nothing but SIGTERM has been sent so far
        next(steps)
        await until(lambda: not any(map(lives, numbers)))
        assert next(steps, None) is None


async def test_who_cannot_be_ended_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with started("exec sleep 600") as root:
        with monkeypatch.context() as patch:
            patch.setattr(keeper, "send", lambda _process, _number: None)
            pauses = end([of_session(root.pid)])
        assert sum(pauses) >= keeper.STOP_SECONDS + keeper.KILL_SECONDS
        assert lives(root.pid)
        root.kill()


def test_the_docs_say_what_is_done_and_what_the_log_says() -> None:
    docs = Path(__file__).parents[2] / "docs" / "configuration.md"
    section = docs.read_text().partition("### Servers that the gateway starts\n")[2]
    section = section.partition("\n### ")[0]
    assert f"still there {keeper.STOP_SECONDS} s later, by SIGKILL" in section
    for said in ("`server ended`", "`keeper ended, another is begun`", "`keeper.py` in `ps`"):
        assert said in section
    assert Path(keeper.__file__).name == "keeper.py"
