"""Servers are exchanged, and disks copied, under clients that write and check what they read."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import trio

from gateway.admin.asking import ask

from .clients import nbdinfo, qemu_io
from .gateways import MODE, Before
from .loads import ended, reading, verified, writing
from .processes import Finished, Process, attempt, listening, wait_until
from .servers import Servers, Upstream, free_port, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="only the gateway switches")

MIB = 1 << 20
SIZE = 64 * MIB


class Switchable(Before):
    """One gateway before one upstream, that shows its disk as "d", at a port."""

    def __init__(self, workdir: Path, upstream: str, more: str = "", how: str = "") -> None:
        export = '[[export]]\nname = "d"\nupstream = "disks"\nupstream-name = ""\n'
        base = f"nbd://127.0.0.1:{free_port()}"
        super().__init__(workdir, f'uri = "{upstream}"\n{how}', export + more, base=base)
        self.disk = self.uri("d")

    def do(self, *words: str | Path) -> Finished:
        return attempt(*self.command(*words))

    def command(self, verb: str | Path, *words: str | Path) -> tuple[str | Path, ...]:
        return sys.executable, "-m", "gateway", verb, "--socket", self.socket, *words


def raw(servers: Servers, disk: Path, *more: str) -> Upstream:
    # What one has acknowledged the other has to see at once: both read and write through the same file.
    return servers.qemu_nbd(disk, "-f", "raw", "--cache=writeback", *more)


def empty(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def fio(gateway: Switchable) -> Process:
    """Three clients that write, flush, and read again; they are there when this returns."""
    load = writing(gateway.disk, jobs=3, mib=16, depth=16)
    # Before that it connects once for each, to ask for the size.
    load.ready_when(lambda: "Starting" in load.output and gateway.sessions == 3, "there is load")
    return load


def test_back_and_forth_under_fio(servers: Servers, workdir: Path) -> None:
    disk = empty(workdir / "disk")
    one, other = raw(servers, disk), raw(servers, disk)
    gateway = Switchable(workdir, one.uri)
    load = fio(gateway)
    for _ in range(10):
        for arguments in ({"uri": other.uri}, {}):
            answer = trio.run(ask, gateway.socket, "switch", {"export": "d", **arguments})
            assert answer.ok, f"{answer}\n{gateway.process.output}"
            assert answer.done[0].startswith("'d': 3 sessions went over to")
    verified(load, jobs=3)
    assert "session switched" in gateway.process.output  # of so many lines some are left out
    assert "session ended" in gateway.process.output
    assert "why=" not in gateway.process.output
    gateway.end()


MODES = {
    "shared": 'connections = "shared"',
    "spread": "connections = 2",
    "shared and spread": 'connections = "shared:2"',
    "verified": 'connections = "shared"\nunflushed = "verify"',
    "replayed": 'connections = "shared:2"\nunflushed = "replay"\nsole-writer = true',
    "watched": "stall-seconds = 20",
}


@pytest.mark.parametrize("mode", MODES)
def test_back_and_forth_of_bundles(servers: Servers, workdir: Path, mode: str) -> None:
    disk = empty(workdir / "disk")
    one, other = raw(servers, disk, "--shared=0"), raw(servers, disk, "--shared=0")
    gateway = Switchable(workdir, one.uri, how=MODES[mode])
    load = fio(gateway)
    for _ in range(5):
        for arguments in ({"uri": other.uri}, {}):
            answer = trio.run(ask, gateway.socket, "switch", {"export": "d", **arguments})
            assert answer.ok, f"{answer}\n{gateway.process.output}"
            assert answer.done[0].startswith("'d': 3 sessions went over to")
    verified(load, jobs=3)
    assert "session switched" in gateway.process.output  # of so many lines some are left out
    assert "why=" not in gateway.process.output
    assert "connection lost" not in gateway.process.output
    gateway.end()


def test_many_clients_of_servers_that_take_one_connection(servers: Servers, workdir: Path) -> None:
    disk = empty(workdir / "disk")
    one, other = raw(servers, disk, "--shared=1"), raw(servers, disk, "--shared=1")
    gateway = Switchable(workdir, one.uri, how=MODES["shared"] + "\nconnect-seconds = 2")
    load = fio(gateway)
    for more in (("--close-first",), (other.uri,), ("--close-first",)):
        done = gateway.do("switch", "d", *more)
        assert done.status == 0, f"{done}\n{gateway.process.output}"
        assert "3 sessions went over" in done.out
    failed = gateway.do("switch", "d", unix_uri(workdir / "nobody"), "--close-first")
    assert failed.status == 1
    assert "stays paused" in failed.err
    assert gateway.do("resume", "d").status == 0
    verified(load, jobs=3)
    gateway.end()


def test_a_shared_server_is_restarted_while_paused(servers: Servers, workdir: Path) -> None:
    """Longer than it would be waited for."""
    disk = empty(workdir / "disk")
    path = workdir / "s"
    command = ("qemu-nbd", "--persistent", "--shared=1", "-f", "raw", "-k", path, disk)

    def start() -> Process:
        server = Process(*command)
        server.ready_when(path.is_socket, "it listens")
        return server

    server = start()
    how = MODES["shared"] + "\nreconnect-seconds = 0\nconnect-seconds = 2"
    gateway = Switchable(workdir, unix_uri(path), how=how)
    load = fio(gateway)
    assert gateway.do("pause", "d").status == 0
    server.stop()
    wait_until(lambda: "given up" in gateway.process.output, "it is not waited for")
    failed = gateway.do("resume", "d")
    assert failed.status == 1
    assert "unreachable" in failed.err
    assert gateway.sessions == 3
    path.unlink(missing_ok=True)
    server = start()
    assert "3 sessions go on, 3 of them over new connections" in resumed(gateway).out
    verified(load, jobs=3)
    gateway.end()
    server.stop()


def test_a_server_of_another_size_is_refused(servers: Servers, workdir: Path) -> None:
    disk = empty(workdir / "disk")
    one = raw(servers, disk)
    larger = raw(servers, empty(workdir / "larger", 2 * SIZE))
    readonly = raw(servers, disk, "--read-only")
    gateway = Switchable(workdir, one.uri)
    load = fio(gateway)
    done = gateway.do("switch", "d", larger.uri)
    assert done.status == 1
    assert f"does not fit: size {2 * SIZE} instead of {SIZE}" in done.err
    done = gateway.do("switch", "d", readonly.uri)
    assert done.status == 1
    assert "read-only" in done.err
    done = gateway.do("switch", "d", unix_uri(workdir / "nobody"))
    assert done.status == 1
    assert "unreachable" in done.err
    verified(load, jobs=3)
    assert "session switched" not in gateway.process.output
    gateway.end()


def resumed(gateway: Switchable) -> Finished:
    """Resume, as soon as the server is tried again: one that has been down is not tried all the time."""
    done: list[Finished] = []

    def is_done() -> bool:
        done.append(gateway.do("resume", "d"))
        return done[-1].status == 0

    wait_until(is_done, "it goes on")
    return done[-1]


COUNTING = """
import json, sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
number = flushed = 0
print("begun", flush=True)
while number < 100000:
    for _ in range(16):
        number += 1
        h.pwrite(number.to_bytes(8, "big") * 512, number % 1024 * 4096)
    h.flush()
    print(number, flush=True)
"""


def test_a_copy_of_a_paused_disk(servers: Servers, workdir: Path) -> None:
    """Writes are one after the other, each to the next block: what the copy has is all up to one of them."""
    disk = empty(workdir / "disk")
    gateway = Switchable(workdir, raw(servers, disk).uri)
    client = Process("/usr/bin/python3", "-c", COUNTING, gateway.disk)
    wait_until(lambda: client.output.count("\n") > 50, "it counts")
    done = gateway.do("pause", "d")
    assert done.status == 0, str(done)
    assert "1 session held, 1 flushed" in done.out
    said = int(client.output.split()[-1])
    copy = workdir / "copy"
    shutil.copyfile(disk, copy)
    assert gateway.do("pause", "d").status == 0
    shutil.copyfile(disk, workdir / "later")
    content = copy.read_bytes()
    assert content == (workdir / "later").read_bytes()
    blocks = [content[at : at + 4096] for at in range(0, 1024 * 4096, 4096)]
    assert all(block == block[:8] * 512 for block in blocks)
    numbers = [int.from_bytes(block[:8], "big") for block in blocks]
    last = max(numbers)
    assert said <= last <= said + 16
    for at, number in enumerate(numbers):
        assert number == max((n for n in (last - (last - at) % 1024,) if n > 0), default=0)
    lines = client.output.count("\n")
    done = gateway.do("resume", "d")
    assert done.status == 0, str(done)
    wait_until(lambda: client.output.count("\n") > lines + 20, "it counts on")
    done = gateway.do("resume", "d")
    assert done.status == 1
    assert "is not paused" in done.err
    client.kill()
    gateway.end()


def test_a_server_is_restarted_while_paused(servers: Servers, workdir: Path) -> None:
    """At the same address; with a client that goes on, and one that comes meanwhile."""
    disk = empty(workdir / "disk")
    path = workdir / "s"
    command = ("qemu-nbd", "--persistent", "--shared=0", "-f", "raw", "-k", path, disk)

    def start() -> Process:
        server = Process(*command)
        server.ready_when(lambda: listening(unix_uri(path)), "it listens")
        return server

    server = start()
    gateway = Switchable(workdir, unix_uri(path), how="connect-seconds = 2")
    load = fio(gateway)
    assert gateway.do("pause", "d").status == 0
    server.stop()
    failed = gateway.do("resume", "d")
    assert failed.status == 1
    assert "unreachable" in failed.err
    late = Process("qemu-io", "-f", "raw", "-c", "read 0 4k", gateway.disk)
    server = start()
    assert "over new connections" in resumed(gateway).out
    verified(load, jobs=3)
    assert late.wait() == 0, late.output
    gateway.end()
    server.stop()


def test_servers_that_take_one_connection(servers: Servers, workdir: Path) -> None:
    disk = empty(workdir / "disk")
    one = raw(servers, disk, "--shared=1")
    gateway = Switchable(workdir, one.uri, "[upstream.x]\nuri = 'memory:1M'\n")
    load = reading(gateway.disk)
    wait_until(lambda: gateway.sessions == 1, "there is load")
    for _ in range(3):
        done = gateway.do("switch", "d", "--close-first")
        assert done.status == 0, str(done)
    ended(load)
    client = counting(gateway)  # which does not end by itself, however long the next takes
    failed = gateway.do("switch", "d", unix_uri(workdir / "nobody"), "--close-first")
    assert failed.status == 1
    assert "stays paused" in failed.err
    assert gateway.do("resume", "d").status == 0
    goes_on(client)
    client.kill()
    wait_until(lambda: gateway.sessions == 0, "its connection is free")
    assert nbdinfo(gateway.disk)["exports"][0]["export-size"] == SIZE
    gateway.end()


def test_who_comes_after_a_switch_is_led_there(servers: Servers, workdir: Path) -> None:
    one = raw(servers, empty(workdir / "one"))
    other = raw(servers, empty(workdir / "other"))
    gateway = Switchable(workdir, one.uri)
    assert gateway.do("switch", "d", other.uri).status == 0
    qemu_io(gateway.disk, "write -P 7 0 4k")
    qemu_io(other.uri, "read -P 7 0 4k")
    qemu_io(one.uri, "read -P 0 0 4k")
    assert gateway.do("switch", "d").status == 0
    qemu_io(gateway.disk, "read -P 0 0 4k")
    gateway.end()


# --- While a command runs


def counting(gateway: Switchable) -> Process:
    client = Process("/usr/bin/python3", "-c", COUNTING, gateway.disk)
    wait_until(lambda: client.output.count("\n") > 50, "it counts")
    return client


def goes_on(client: Process) -> None:
    lines = client.output.count("\n")
    wait_until(lambda: client.output.count("\n") > lines + 20, "it counts on")


def test_a_command_runs_while_it_is_paused(servers: Servers, workdir: Path) -> None:
    """The copy is made by the command; its status is ours, and its output too."""
    disk = empty(workdir / "disk")
    gateway = Switchable(workdir, raw(servers, disk).uri)
    client = counting(gateway)
    copy = workdir / "a copy"
    script = f'cp {disk} "$1" && sleep 0.3 && cmp {disk} "$1" && echo "same: $1"; exit 7'
    done = gateway.do("pause", "d", "--", "sh", "-c", script, "sh", copy)
    assert done.status == 7, str(done)
    assert done.out == f"same: {copy}\n"
    assert "1 session held, 1 flushed" in done.err
    assert "1 session goes on" in done.err
    goes_on(client)
    assert gateway.do("pause", "d", "--", "true").status == 0
    assert gateway.do("pause", "d", "--", workdir / "no such").status == 127
    assert gateway.do("pause", "d", "--run", "kill -9 $$").status == 128 + 9
    goes_on(client)
    client.kill()
    gateway.end()


def test_a_command_that_is_not_run(servers: Servers, workdir: Path) -> None:
    ran = workdir / "ran"
    gateway = Switchable(workdir, raw(servers, empty(workdir / "disk")).uri)
    assert gateway.do("pause", "z", "--", "touch", ran).status == 1
    done = gateway.do("pause", "d", "--")
    assert done.status == 2
    assert "expected a command behind --" in done.err
    assert gateway.do("pause", "d", "touch", ran).status == 2
    assert gateway.do("pause", "d").status == 0
    done = gateway.do("pause", "d", "--", "touch", ran)
    assert done.status == 1
    assert "'d' is paused already, and stays so" in done.err
    assert not ran.exists()
    assert gateway.do("resume", "d").status == 0
    gateway.end()


def test_a_command_that_outlasts_the_pause(servers: Servers, workdir: Path) -> None:
    gateway = Switchable(workdir, raw(servers, empty(workdir / "disk")).uri)
    # What ends a pause early is its time, or somebody else; here it is the command itself.
    ended = f"{sys.executable} -m gateway resume d --socket {gateway.socket}"
    for more, status in (("true", 3), ("exit 5", 5)):
        done = gateway.do("pause", "d", "--run", f"{ended} && {more}")
        assert done.status == status, str(done)
        assert "clients may have gone on while the command ran" in done.err
    gateway.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_becomes_of_who_paused_it(
    servers: Servers, workdir: Path, number: signal.Signals
) -> None:
    """A signal that can be is handed on to the command, which ends first; Ctrl-C has reached it already."""
    gateway = Switchable(workdir, raw(servers, empty(workdir / "disk")).uri)
    client = counting(gateway)
    runs, stays = workdir / "runs", workdir / "stays"
    stays.touch()
    script = f"trap 'rm -f {stays}' TERM; touch {runs}; while [ -e {stays} ]; do sleep 0.05; done"
    caller = Process(*gateway.command("pause", "d", "--run", script))
    wait_until(runs.exists, "the command runs")
    caller.signal(number)
    if number is signal.SIGINT:  # and the command goes on until it has done
        stays.unlink()
    assert caller.wait() == {signal.SIGKILL: -9, signal.SIGTERM: 0, signal.SIGINT: 0}[number]
    goes_on(client)
    gone = "who had it paused has gone" in gateway.process.output
    assert gone == (number is signal.SIGKILL)
    stays.unlink(missing_ok=True)
    client.kill()
    gateway.end()


def test_who_interrupts_a_pause_leaves_nobody_held(servers: Servers, workdir: Path) -> None:
    """The server does not answer, and when it does nobody waits for that any more."""
    disk = empty(workdir / "disk")
    path = workdir / "s"
    server = Process("qemu-nbd", "--persistent", "--shared=0", "-f", "raw", "-k", path, disk)
    server.ready_when(lambda: listening(unix_uri(path)), "it listens")
    gateway = Switchable(workdir, unix_uri(path))
    client = counting(gateway)
    server.signal(signal.SIGSTOP)
    caller = Process(*gateway.command("pause", "d", "--within", "60"))
    # It has the answer of nobody; what it waits for is the FLUSH, or what was under way before.
    wait_until(lambda: "\n" in caller.output or held(gateway), "it is held")
    wait_until(lambda: has_a_socket(caller), "it is there")  # before that Ctrl-C may hit an import
    caller.signal(signal.SIGINT)
    assert caller.wait() == 130
    assert "interrupted" in caller.output
    wait_until(lambda: "command undone" in gateway.process.output, "the gateway has seen it")
    server.signal(signal.SIGCONT)
    goes_on(client)
    assert "is not paused" in gateway.do("resume", "d").err
    client.kill()
    gateway.end()
    server.stop()


def has_a_socket(process: Process) -> bool:
    descriptors = Path(f"/proc/{process.pid}/fd").iterdir()
    return any(str(each.readlink()).startswith("socket:") for each in descriptors)


def held(gateway: Switchable) -> bool:
    """A second caller waits for the first, as long as that is not done."""
    done = gateway.do("pause", "d", "--within", "0.2")
    return "others' commands took longer" in done.err


def test_what_is_done_and_cannot_be_said(servers: Servers, workdir: Path) -> None:
    gateway = Switchable(workdir, raw(servers, empty(workdir / "disk")).uri)
    pause = shlex.join(str(word) for word in gateway.command("pause", "d"))
    done = attempt("/bin/sh", "-c", f"exec {pause} >/dev/full")
    assert done.status == 3
    assert "No space left on device; but it is done" in done.err
    assert gateway.do("resume", "d").status == 0
    gateway.end()


def test_the_log_says_who_has_asked(servers: Servers, workdir: Path) -> None:
    gateway = Switchable(
        workdir, raw(servers, empty(workdir / "disk")).uri, '[log]\nformat = "json"\n'
    )
    caller = Process(*gateway.command("pause", "d"))
    assert caller.wait() == 0
    assert gateway.do("pause", "z").status == 1
    odd = {"event": "another", "pid": 1, "verb": "resume", "export": [7]}
    assert not trio.run(ask, gateway.socket, "pause", odd).ok
    wait_until(lambda: gateway.process.output.count('"event": "command') == 3, "it has said so")
    lines = [json.loads(each) for each in gateway.process.output.splitlines()]
    done, not_done, odd_one = [each for each in lines if each["event"].startswith("command")]
    assert (done["event"], done["verb"], done["export"]) == ("command done", "pause", "d")
    assert (done["pid"], done["uid"]) == (caller.pid, os.getuid())
    assert done["done"] == ["'d': 0 sessions held, 0 flushed, for 300 s"]
    assert (not_done["event"], not_done["level"]) == ("command not done", "warning")
    assert not_done["why"] == ["there is no export 'z'"]
    assert odd_one["arguments"] == {key: odd[key] for key in ("event", "pid", "export")}
    assert odd_one["pid"] == os.getpid()
    gateway.end()
