"""serve and demo in processes of their own, with real clients and servers."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

GATEWAY = (sys.executable, "-m", "gateway")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GATEWAY, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"{what} has not come"
        os.sched_yield()


@contextmanager
def running(
    *arguments: str, cwd: Path, descriptors: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    command = [*GATEWAY, *arguments]
    if descriptors is not None:
        command = ["/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=HANG_SECONDS)


def nbdinfo(uri: str) -> str:
    return subprocess.run(
        ["nbdinfo", "--size", uri], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    ).stdout.strip()


def test_run_ends_with_its_command_and_its_status(tmp_path: Path) -> None:
    done = run("serve", "memory:64M", "--run", 'nbdinfo --size "$uri"; exit 7', cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{64 << 20}\n"


def test_a_file_is_served_and_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\xff" * (1 << 20))
    command = 'qemu-io -f raw -c "write -P 7 512 512" -c "write -z 4k 4k" "$uri"'
    done = run("serve", "file:disk.img", "--run", command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = disk.read_bytes()
    assert data[:512] == b"\xff" * 512
    assert data[512:1024] == b"\7" * 512
    assert data[4096:8192] == bytes(4096)
    assert data[8192:] == b"\xff" * ((1 << 20) - 8192)


def run_before_two_disks(listen: str, command: str, cwd: Path) -> str:
    """Run a command with a gateway that has one unusual listener; give what it says."""
    (cwd / "g.toml").write_text(
        f'[[listen]]\nuri = "nbd+unix:///?socket=g.sock"\n{listen}\n'
        '[upstream.a]\nuri = "memory:1M"\n[upstream.b]\nuri = "memory:2M"\n'
        '[[export]]\nname = ""\nupstream = "a"\n[[export]]\nname = "b"\nupstream = "b"\n'
        'upstream-name = ""\n'
    )
    done = run("serve", "--config", "g.toml", "--run", command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


OLDSTYLE = 'style = "oldstyle"\nexport = "b"'


@pytest.mark.parametrize(
    ("listen", "protocol", "size"),
    [
        ('style = "oldstyle"', "oldstyle without TLS, using simple packets", 1 << 20),
        (OLDSTYLE, "oldstyle without TLS, using simple packets", 2 << 20),
        ("handshake-flags = []", "newstyle without TLS, using simple packets", 1 << 20),
        (
            'handshake-flags = ["FIXED_NEWSTYLE"]',
            "newstyle-fixed without TLS, using structured packets",
            1 << 20,
        ),
    ],
)
def test_nbdinfo_takes_every_greeting(
    tmp_path: Path, listen: str, protocol: str, size: int
) -> None:
    said = run_before_two_disks(listen, 'nbdinfo "$uri"', tmp_path)
    assert f"protocol: {protocol}\n" in said
    assert f"export-size: {size} " in said
    assert "is_read_only: false" in said


@pytest.mark.parametrize("listen", [OLDSTYLE, 'handshake-flags = ["NO_ZEROES"]'])
def test_qemu_io_writes_and_reads_back_whatever_the_greeting(tmp_path: Path, listen: str) -> None:
    commands = ("write -P 7 512 64k", "flush", "write -z 4k 4k", "discard 8k 8k")
    reads = ("read -P 7 512 3584", "read -P 0 4k 4k", "read -P 7 16k 512")
    command = "".join(f' -c "{words}"' for words in (*commands, *reads))
    said = run_before_two_disks(listen, f'qemu-io -f raw{command} "$uri"', tmp_path)
    assert "wrote 65536/65536" in said
    assert said.count("read ") == len(reads)
    assert "failed" not in said


def test_nbdkit_takes_an_oldstyle_listener_for_its_server(tmp_path: Path) -> None:
    inner = 'nbdkit -U - nbd "uri=nbd+unix:///?socket=$unixsocket" --run \'nbdinfo --size "$uri"\''
    assert run_before_two_disks(OLDSTYLE, inner, tmp_path) == f"{2 << 20}\n"


@pytest.mark.parametrize(
    "command",
    ['["qemu-nbd", "-t", "-f", "raw", "disk.img"]', '["nbdkit", "-f", "file", "disk.img"]'],
    ids=["qemu-nbd", "nbdkit"],
)
def test_a_command_is_started_by_socket_activation_and_ended(tmp_path: Path, command: str) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(3 << 20))
    (tmp_path / "g.toml").write_text(
        f'[[listen]]\nuri = "nbd+unix:///?socket=g.sock"\n[upstream.disk]\ncommand = {command}\n'
    )
    script = f'nbdinfo --size "$uri" && pgrep -P {"$PPID"} -f disk.img > servers'
    done = run("serve", "--config", "g.toml", "--run", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{3 << 20}\n"
    for number in (tmp_path / "servers").read_text().split():
        assert not Path(f"/proc/{number}").exists()


def test_sigterm_ends_it_in_good_order(tmp_path: Path) -> None:
    listen = "nbd+unix:///?socket=g.sock"
    with running(
        *("serve", "memory:1M", "--listen", listen, "--socket-mode", "0640", "--pidfile", "pid"),
        cwd=tmp_path,
    ) as gateway:
        wait_until((tmp_path / "pid").exists, "the pid file")
        wait_until(lambda: (tmp_path / "pid").read_text() == f"{gateway.pid}\n", "the number")
        assert stat.S_IMODE((tmp_path / "g.sock").stat().st_mode) == 0o640
        assert nbdinfo(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
    assert not (tmp_path / "g.sock").exists()
    assert not (tmp_path / "pid").exists()


def test_it_ends_after_the_last_client(tmp_path: Path) -> None:
    listen = "nbd+unix:///?socket=g.sock"
    arguments = ("serve", "memory:1M", "--listen", listen, "--exit-after-last-client")
    with running(*arguments, cwd=tmp_path) as gateway:
        wait_until((tmp_path / "g.sock").exists, "the socket")
        assert nbdinfo(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
        assert gateway.wait(HANG_SECONDS) == 0


@contextmanager
def connected(path: Path, count: int, says: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for client in clients:
            client.connect(str(path))
            client.sendall(says)
        yield clients


def log_until(process: subprocess.Popen[str], words: str) -> str:
    """What the process writes, up to a line with these words."""
    assert process.stderr is not None
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


FIXED_NEWSTYLE_GO = b"\0\0\0\1IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0"


def test_a_shortage_of_descriptors_is_said_once_and_gets_over(tmp_path: Path) -> None:
    arguments = ("serve", "memory:1M", "--listen", "nbd+unix:///?socket=g.sock")
    with running(*arguments, cwd=tmp_path, descriptors=40) as gateway:
        log_until(gateway, "listening")
        with connected(tmp_path / "g.sock", 60, FIXED_NEWSTYLE_GO):
            said = log_until(gateway, "could not accept a client")
            time.sleep(0.5)  # for the gateway to try again some times
        assert nbdinfo(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
        assert gateway.stderr is not None
        said += gateway.stderr.read()
    assert "Too many open files" in said
    assert "ulimit -n" in said
    assert said.count("could not accept a client") <= 2, (
        said
    )  # at once, and with a count at the end
    assert "Traceback" not in said
    assert "internal error" not in said


def test_clients_that_are_turned_away_are_counted(tmp_path: Path) -> None:
    listen = ("--listen", "nbd+unix:///?socket=g.sock", "--max-connections", "1")
    with running("serve", "memory:1M", *listen, cwd=tmp_path) as gateway:
        log_until(gateway, "listening")
        with connected(tmp_path / "g.sock", 1) as [first]:
            assert first.recv(8) == b"NBDMAGIC"
            with connected(tmp_path / "g.sock", 50) as others:
                assert {client.recv(1) for client in others} == {b""}
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
        assert gateway.stderr is not None
        lines = [line for line in gateway.stderr if "turned away" in line]
    counts = [int(line.partition("count=")[2].split()[0]) for line in lines]
    assert sum(counts) == 50
    assert len(lines) < 10


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "g.sock")
    arguments = ("serve", "memory:1M", "--listen", f"nbd+unix:///?socket={path}", "--run", "true")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "Address already in use" in done.stderr
    assert run(*arguments, cwd=tmp_path).returncode == 0  # its owner has gone without removing it
    Path(path).write_text("precious")
    assert "not a socket" in run(*arguments, cwd=tmp_path).stderr
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize(
    ("upstream", "words"),
    [
        ("file:missing.img", "missing.img"),
        ("legacy:qemu-99", "qemu-99"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, upstream: str, words: str) -> None:
    done = run("serve", upstream, "--run", "true", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_log_says_why_an_upstream_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"nbd://127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", uri, "--run", 'nbdinfo --size "$uri"', cwd=tmp_path)
    assert done.returncode == 1
    assert f"cannot connect to {uri}: " in done.stderr
    assert "Connection refused" in done.stderr


def test_demo_shows_both_sides_and_serves(tmp_path: Path) -> None:
    with running("demo", cwd=tmp_path) as demo:
        assert demo.stdout is not None
        said = ""
        while "the same server, direct" not in said:
            line = demo.stdout.readline()
            assert line, said
            said += line
        rows = {row.split("│")[1].strip(): row for row in said.splitlines() if row.count("│") > 3}
        assert "CACHE is meant" in rows["CAN_MULTI_CONN"]
        assert "not set │ set" in " ".join(rows["SEND_CACHE"].split())
        assert said.count("hangs for ever") == 1
        assert "worst case (legacy:qemu-3.0-incoherent)" in said
        through = re.findall(r"nbdinfo (nbd://\S+)", said)[0]
        assert nbdinfo(through) == str(64 << 20)
        # What is said of nbdcopy is true of the real one, of the way that does not hang.
        assert re.findall(r"nbdcopy (nbd://\S+)", said)[0] == through
        subprocess.run(["nbdcopy", through, "null:"], timeout=HANG_SECONDS, check=True)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(HANG_SECONDS) == 0
