import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pydantic import ValidationError
from structlog.testing import capture_logs

from gateway.identity import Identity, UnixPeer
from gateway.log.writer import MAX_BYTES, flush_all
from gateway.policy import (
    Client,
    Cmd,
    CmdFlag,
    Denied,
    Errno,
    Failed,
    Policy,
    Request,
    Result,
    Session,
)
from policies.audit import COMPLAIN_SECONDS, REQUIRED_SECONDS, Audit, _not_mixing
from tests.policies.harness import Disk, client, configured, do, session, view

WRITE = Request(Cmd.WRITE, 512, 4, CmdFlag.FUA, b"data")
CHANGES = (
    WRITE,
    Request(Cmd.WRITE_ZEROES, 4096, 8192, CmdFlag.NO_HOLE | CmdFlag.FAST_ZERO),
    Request(Cmd.TRIM, 0, 512),
)

Make = Callable[..., Audit]

SECONDS = 30
"""More than writing takes: only a fault waits for it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def audit(path: Path) -> Iterator[Make]:
    made = []

    def make(**options: Any) -> Audit:
        policy = configured(Audit, {"file": str(path)} | options)
        assert isinstance(policy, Audit)
        made.append(policy)
        return policy

    yield make
    for policy in made:
        policy.retire()
    settle()


def settle() -> None:
    """Wait until what was said is written, or lost."""
    assert flush_all(SECONDS)


async def let_in(policy: Policy, one: Session) -> Policy:
    """What stands for a session that goes as far as it is let."""
    joined = policy.join(one)
    if not joined.prepares():
        return joined
    try:
        return await joined.prepare(view(), Disk())
    except Denied:
        policy.leave(one)
        raise


def lines(path: Path) -> list[dict[str, Any]]:
    """What the file has, without the times; every line must be one, and whole."""
    settle()
    said = path.read_bytes().decode("ascii")
    assert said.endswith("\n")
    found = [json.loads(line) for line in said.splitlines()]
    for each in found:
        assert datetime.fromisoformat(each.pop("time")).tzinfo is not None
    return found


def events(path: Path) -> list[str]:
    return [line["event"] for line in lines(path)]


def open_files(path: Path) -> int:
    """How many descriptors of ours lead to the file, under whatever name."""
    settle()
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = link.readlink()
            # Other tests of this process may have their own.
            found += target.parent == path.parent and target.name.startswith(path.name)
        except FileNotFoundError:
            continue
    return found


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """A disk that is full: what goes beyond is written in part, and then not at all."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_who_opened_what_and_how_much(audit: Make, path: Path) -> None:
    policy = audit()
    one = session(peer="10.0.0.1:9", address=ip_address("10.0.0.1"), psk_user="ann")
    assert policy.join(one) is policy
    one.commands, one.bytes_from_client, one.bytes_to_client = 3, 4, 5
    one.refused["WRITE", "EPERM"] += 2
    one.why = "the connection was lost"
    policy.leave(one)
    opened, closed = lines(path)
    who = "psk:ann 10.0.0.1:9"
    assert opened == {
        "event": "opened",
        "session": one.client.id,
        "export": "vm-1",
        "who": who,
        "peer": "10.0.0.1:9",
        "address": "10.0.0.1",
        "psk_user": "ann",
    }
    assert 0 <= closed.pop("seconds") < 600
    assert closed == {
        "event": "closed",
        "session": one.client.id,
        "export": "vm-1",
        "who": who,
        "commands": 3,
        "bytes_from_client": 4,
        "bytes_to_client": 5,
        "refused": {"WRITE EPERM": 2},
        "why": "the connection was lost",
    }


def test_the_time_has_a_zone(audit: Make, path: Path) -> None:
    audit().join(session())
    settle()
    text = json.loads(path.read_text())["time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", text)


@pytest.mark.parametrize(
    ("proofs", "said"),
    [
        ({}, {}),
        ({"unix": UnixPeer(7, 1000, 100)}, {"unix": {"pid": 7, "uid": 1000, "gid": 100}}),
        ({"cid": 3}, {"cid": 3}),
        ({"cid": 0}, {"cid": 0}),
        (
            {"subject": (("CN", "ann"), ("O", "x")), "common_names": ("ann",)},
            {"subject": [["CN", "ann"], ["O", "x"]], "common_names": ["ann"]},
        ),
        (
            {"tls_version": "TLSv1.3", "cipher": "c", "fingerprint": "ab", "dns_names": ("d",)},
            {"tls_version": "TLSv1.3", "cipher": "c", "fingerprint": "ab", "dns_names": ["d"]},
        ),
    ],
)
def test_what_is_known_of_a_client(
    audit: Make, path: Path, proofs: dict[str, Any], said: dict[str, Any]
) -> None:
    one = session(**proofs)
    audit().join(one)
    known = {"event", "session", "export", "who"}
    assert {key: value for key, value in lines(path)[0].items() if key not in known} == said


def test_who_was_turned_away(audit: Make, path: Path) -> None:
    audit().denied(client(psk_user="eve"), "vm-1", "not at this time")
    assert lines(path) == [
        {
            "event": "denied",
            "export": "vm-1",
            "who": "psk:eve",
            "psk_user": "eve",
            "why": "not at this time",
        }
    ]


@pytest.mark.parametrize("name", ['a\nb"c\\', "\u2028\u0085", "\udcff", "é", "\0", '{"event": 1}'])
def test_names_may_have_any_characters(audit: Make, path: Path, name: str) -> None:
    policy = audit()
    policy.denied(client(psk_user=name), name, name)
    policy.denied(client(), name, "")
    first, second = lines(path)
    assert (first["export"], first["psk_user"], first["why"]) == (name, name, name)
    assert second["export"] == name


# --- Writes


async def test_every_write_is_written_down(audit: Make, path: Path) -> None:
    policy, disk = audit(writes=True), Disk()
    one, other = session(), session(export="vm-2")
    mine, theirs = policy.join(one), policy.join(other)
    for request in CHANGES:
        await do(mine, request, disk)
    await do(theirs, WRITE, disk)
    assert disk.asked == [*CHANGES, WRITE]
    assert lines(path)[2:] == [
        {
            "event": "write",
            "session": who.client.id,
            "export": who.export,
            "command": command,
            "offset": offset,
            "length": length,
            "flags": flags,
            "result": "ok",
        }
        for who, command, offset, length, flags in (
            (one, "WRITE", 512, 4, ["FUA"]),
            (one, "WRITE_ZEROES", 4096, 8192, ["NO_HOLE", "FAST_ZERO"]),
            (one, "TRIM", 0, 512, []),
            (other, "WRITE", 512, 4, ["FUA"]),
        )
    ]
    policy.leave(one)
    assert lines(path)[-1]["session"] == one.client.id


@pytest.mark.parametrize("request_", CHANGES)
async def test_a_write_that_fails(audit: Make, path: Path, request_: Request) -> None:
    policy = audit(writes=True).join(session())
    disk = Disk(fails={request_.command: Errno.ENOSPC})
    with pytest.raises(Failed) as failed:
        await do(policy, request_, disk)
    assert failed.value.error is Errno.ENOSPC
    assert lines(path)[-1]["result"] == "ENOSPC"


async def test_a_write_that_is_never_answered(audit: Make, path: Path) -> None:
    policy = audit(writes=True).join(session())

    async def never(request: Request) -> Result:
        await trio.sleep_forever()
        raise AssertionError

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(policy.write, WRITE, never)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert lines(path)[-1]["result"] == "unknown"


def test_hooks_cost_only_those_who_want_them(audit: Make) -> None:
    assert set(audit().hooked(view())) == set()
    assert set(audit(writes=True).hooked(view())) == {Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM}


# --- The file


def test_nothing_is_opened_before_the_first_line(audit: Make, path: Path) -> None:
    policy = audit(writes=True, required=True)
    policy.describe(view())
    assert not path.exists()
    policy.join(session())
    settle()
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    assert open_files(path) == 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_logrotate_may_move_it(audit: Make, path: Path) -> None:
    policy, one = audit(), session()
    policy.join(one)
    settle()
    moved = path.rename(path.with_suffix(".log.1"))
    policy.denied(client(), "vm-2", "")
    assert events(moved) == ["opened"]
    assert events(path) == ["denied"]
    assert open_files(path) == 1
    path.unlink()
    policy.leave(one)
    assert events(path) == ["closed"]
    # Another file by its name, and one that was cut short
    path.rename(path.with_suffix(".log.2"))
    path.write_text("")
    policy.denied(client(), "vm-3", "")
    assert events(path) == ["denied"]
    path.write_text("")
    policy.denied(client(), "vm-3", "")
    assert events(path) == ["denied"]
    assert open_files(path) == 1


def test_several_write_to_one_file(audit: Make, path: Path) -> None:
    first, second = audit(), audit()
    for policy in (first, second, first, second):
        policy.denied(client(), "vm-1", "")
    assert events(path) == ["denied"] * 4


SEVERAL = """
import sys
from pathlib import Path
from policies.audit import _File

file = _File(Path(sys.argv[1]))
print(flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    lines = [b'{"who": "%s", "number": %d, "%s": 0}\\n' % (sys.argv[2].encode(), 64 * number + i, b"x" * 250)
             for i in range(64)]
    assert file.put(lines) == 64
"""


@pytest.mark.real
def test_lines_of_several_processes_are_whole_and_all_there(path: Path) -> None:
    """Not one is lost or torn, or has an empty one before it, and each writer's are in order."""
    writers, rounds = ["a", "b", "c"], 200
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SEVERAL, path, name, str(rounds)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for name in writers
        ]
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == b"\n"
        for each in running:
            assert each.stdin is not None
            each.stdin.close()
    assert [each.returncode for each in running] == [0] * len(writers)
    found: dict[str, list[int]] = {name: [] for name in writers}
    for line in path.read_bytes().removesuffix(b"\n").split(b"\n"):
        said = json.loads(line)
        found[said["who"]].append(said["number"])
    assert found == {name: [*range(64 * rounds)] for name in writers}


@pytest.mark.parametrize("other", [False, True])
def test_a_torn_line_does_not_glue_onto_the_next(audit: Make, path: Path, other: bool) -> None:
    policy = audit()
    policy.denied(client(), "vm-1", "")
    settle()
    size = path.stat().st_size
    with capture_logs() as logs, no_file_longer_than(size + 10):
        policy.denied(client(), "vm-1", "")
        policy.denied(client(), "vm-1", "")
        settle()
    assert path.stat().st_size == size + 10
    assert [log["event"] for log in logs] == ["audit lines lost"]
    (audit() if other else policy).denied(client(), "vm-2", "")
    settle()
    whole, torn, after = path.read_text().splitlines()
    assert json.loads(whole)["export"] == "vm-1"
    assert len(torn) == 10
    assert json.loads(after)["export"] == "vm-2"


def test_a_reload_goes_on_in_the_file_of_now(audit: Make, path: Path) -> None:
    before, one = audit(), session()
    before.join(one)
    other = path.with_name("other.log")
    now = audit(file=str(other))
    now.inherit(before)
    now.denied(client(), "vm-1", "")
    before.leave(one)
    assert events(path) == ["opened"]
    assert events(other) == ["denied", "closed"]
    assert (open_files(path), open_files(other)) == (0, 1)


def test_who_outlives_the_policy_is_written_down(audit: Make, path: Path) -> None:
    policy, one = audit(), session()
    policy.join(one)
    policy.retire()
    assert open_files(path) == 0
    policy.leave(one)
    assert events(path) == ["opened", "closed"]
    assert open_files(path) == 0


# --- Lines that cannot be written


@pytest.mark.parametrize("file", ["/dev/full", "/nowhere/audit.log", "/proc/self"])
async def test_a_line_that_is_not_required_may_be_lost(audit: Make, file: str) -> None:
    policy, disk = audit(file=file, writes=True), Disk()
    with capture_logs() as logs:
        one = session()
        joined = policy.join(one)
        settle()
        await do(joined, WRITE, disk)
        policy.denied(client(), "vm-1", "")
        policy.leave(one)
        settle()
        assert disk.asked == [WRITE]
        assert [(log["event"], log["file"], log["lines"]) for log in logs] == [
            ("audit lines lost", file, 1)
        ]
        assert policy._log.file.complained_at is not None
        policy._log.file.complained_at -= COMPLAIN_SECONDS
        policy.denied(client(), "vm-1", "")
        settle()
        assert logs[1]["lines"] == 4


def test_a_pipe_that_nobody_reads_hangs_nobody(audit: Make, path: Path) -> None:
    os.mkfifo(path)
    policy = audit()
    with capture_logs() as logs:
        for _ in range(1000):
            policy.denied(client(), "vm-1", "x" * 100)
        settle()
    assert len(logs) == 1


async def test_who_cannot_be_written_down_is_refused(audit: Make) -> None:
    policy = audit(file="/dev/full", required=True)
    with capture_logs() as logs:
        with pytest.raises(Denied, match="the audit log cannot be written"):
            await let_in(policy, session())
        settle()
    assert len(logs) == 1
    assert not policy._log.opened_at


async def test_a_write_that_cannot_be_written_down_is_not_done(audit: Make, path: Path) -> None:
    policy, disk = audit(writes=True, required=True), Disk()
    one = session()
    mine = await let_in(policy, one)
    for request in CHANGES:
        with capture_logs(), no_file_longer_than(path.stat().st_size):
            with pytest.raises(Failed) as failed:
                await do(mine, request, disk)
            assert (failed.value.error, failed.value.offset) == (Errno.EIO, request.offset)
    assert disk.asked == []
    await do(mine, WRITE, disk)
    assert disk.asked == [WRITE]
    policy.leave(one)
    assert events(path) == ["opened", "writing", "write", "closed"]
    assert "result" not in lines(path)[1]


async def test_a_part_of_a_line_is_no_line(audit: Make, path: Path) -> None:
    policy, disk = await let_in(audit(writes=True, required=True), session()), Disk()
    room = path.stat().st_size + 10
    with capture_logs() as logs, no_file_longer_than(room), pytest.raises(Failed):
        await do(policy, WRITE, disk)
    assert disk.asked == []
    assert len(logs) == 1
    assert "only a part of the line fitted" in logs[0]["error"]


async def test_a_write_that_is_done_does_not_fail_for_its_line(audit: Make, path: Path) -> None:
    policy = await let_in(audit(writes=True, required=True), session())

    async def fills(request: Request) -> Result:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        return None

    with capture_logs() as logs, no_file_longer_than(1 << 20):
        await policy.write(WRITE, fills)
        settle()
    assert len(logs) == 1
    assert events(path) == ["opened", "writing"]


# --- A file that hangs


@pytest.fixture
def hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Have the file hang, as one of a network file system does, until the event is set."""
    goes_on = threading.Event()
    write = os.write

    def hanging(fd: int, data: bytes) -> int:
        if os.path.sameopenfile(fd, named):
            assert goes_on.wait(SECONDS)
        return write(fd, data)

    named = os.open(path, os.O_RDONLY | os.O_CREAT)
    monkeypatch.setattr(os, "write", hanging)
    yield goes_on
    goes_on.set()
    settle()
    os.close(named)


def test_a_file_that_hangs_holds_up_nobody(audit: Make, path: Path, hangs: threading.Event) -> None:
    policy, tries = audit(), 2 * MAX_BYTES // 1000
    with capture_logs() as logs:
        for _ in range(tries):
            policy.denied(client(), "vm-1", "x" * 1000)
        # It is said while it hangs.
        assert [(log["event"], log["lines"]) for log in logs] == [("audit lines lost", 1)]
        assert "hangs" in logs[0]["error"]
        hangs.set()
        there = len(events(path))
        assert 0 < there < tries
        assert policy._log.file.complained_at is not None
        policy._log.file.complained_at -= COMPLAIN_SECONDS
        policy.denied(client(), "vm-2", "")
        assert lines(path)[-1]["export"] == "vm-2"
        assert there + sum(log["lines"] for log in logs) == tries


async def test_nobody_is_let_in_by_a_file_that_hangs(
    audit: Make, path: Path, hangs: threading.Event, autojump_clock: trio.testing.MockClock
) -> None:
    policy = audit(required=True)
    with pytest.raises(Denied, match="the audit log cannot be written"):
        await let_in(policy, session())
    assert trio.current_time() == REQUIRED_SECONDS
    hangs.set()
    assert events(path) == ["opened", "closed"]


@pytest.mark.parametrize("leaves", [False, True])
async def test_no_write_is_done_over_a_file_that_hangs(
    audit: Make,
    path: Path,
    hangs: threading.Event,
    autojump_clock: trio.testing.MockClock,
    leaves: bool,
) -> None:
    policy, disk = audit(writes=True, required=True), Disk()
    joined = policy.join(session())
    with trio.CancelScope() as scope:
        if leaves:
            scope.deadline = trio.current_time() + REQUIRED_SECONDS / 2
        with pytest.raises(Failed) if not leaves else nullcontext():
            await do(joined, WRITE, disk)
    assert scope.cancelled_caught == leaves
    assert disk.asked == []
    hangs.set()
    assert events(path) == ["opened", "writing", "write"]
    assert lines(path)[-1]["result"] == ("unknown" if leaves else "EIO")


def test_lines_for_a_pipe_do_not_mix() -> None:
    """What the kernel takes in one piece: others may write to the pipe between two of ours."""
    for sizes, fitting in [((10,), 1), ((5000,), 1), ((4000, 96), 2), ((4000, 97), 1)]:
        assert len(_not_mixing([bytes(size) for size in sizes])) == fitting


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Field required"),
        ({"file": ""}, "expected a path, got ''"),
        ({"file": 1}, "expected a path, got 1"),
        ({"file": "a\0b"}, "expected a path, got 'a\\x00b'"),
        ({"file": "a", "writes": 1}, "valid boolean"),
        ({"file": "a", "required": "yes"}, "valid boolean"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as mistake:
        configured(Audit, options)
    assert message in str(mistake.value)


def test_a_session_that_another_policy_refuses(audit: Make, path: Path) -> None:
    policy: Policy = audit()
    one = Session(Client(Identity(), client().at), "vm-1")
    policy.join(one)
    policy.leave(one)
    policy.denied(one.client, "vm-1", "full")
    assert events(path) == ["opened", "closed", "denied"]
