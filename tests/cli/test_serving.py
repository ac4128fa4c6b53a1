"""serve and demo in processes of their own, with real clients and servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cli.programs import GATEWAY, size_of
from tests.tools.patience import HANG_SECONDS

from ..interop.rawclient import RawClient

pytestmark = pytest.mark.real


def run(
    *arguments: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GATEWAY, *arguments],
        cwd=cwd,
        env=os.environ | (environment or {}),
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
def running(*arguments: str, cwd: Path, first: str = "") -> Iterator[subprocess.Popen[str]]:
    """`first` is what a shell does before it becomes the gateway."""
    command = [*GATEWAY, *arguments]
    if first:
        command = ["/bin/sh", "-c", f'{first}; exec "$@"', "sh", *command]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=HANG_SECONDS)


def test_run_ends_with_its_command_and_its_status(tmp_path: Path) -> None:
    done = run("serve", "memory:64M", "--run", 'nbdinfo --size "$uri"; exit 7', cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{64 << 20}\n"


def test_run_with_a_socket_that_has_no_file(tmp_path: Path) -> None:
    listen = f"nbd+unix:///?socket=%00nbd-gateway-run-{os.getpid()}"
    command = 'echo "$uri $unixsocket."'
    done = run("serve", "memory:1M", "--listen", listen, "--run", command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{listen} .\n"), done.stderr


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


def lives(number: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{number}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


COMMAND = """
[[listen]]
uri = "nbd+unix:///?socket=g.sock"

[upstream.disk]
command = ["sh", "-c", "sleep 600 & echo $! > other; exec qemu-nbd -t -f raw disk.img"]
"""
"""A server that has another process besides."""


@contextmanager
def with_server(
    cwd: Path, first: str = ""
) -> Iterator[tuple[subprocess.Popen[str], list[int], str]]:
    """Give a gateway that has started a server, the numbers of that, and what the gateway has said."""
    (cwd / "disk.img").write_bytes(bytes(1 << 20))
    (cwd / "g.toml").write_text(COMMAND)
    with running("serve", "--config", "g.toml", cwd=cwd, first=first) as gateway:
        log_until(gateway, "listening")
        assert size_of(f"nbd+unix:///?socket={cwd}/g.sock") == str(1 << 20)
        said = log_until(gateway, "server started")
        server = int(said.partition("pid=")[2].split()[0])
        numbers = [server, int((cwd / "other").read_text())]
        assert all(map(lives, numbers))
        yield gateway, numbers, said


def test_a_server_is_logged_with_its_number_and_ends_with_a_gateway_that_is_killed(
    tmp_path: Path,
) -> None:
    with with_server(tmp_path) as (gateway, numbers, said):
        assert "upstream=disk" in said
        assert b"qemu-nbd" in Path(f"/proc/{numbers[0]}/cmdline").read_bytes()
        gateway.kill()
        wait_until(lambda: not any(map(lives, numbers)), "the end of the server")
    # Nobody holds the disk any more.
    with with_server(tmp_path) as (gateway, numbers, said):
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
        assert not any(map(lives, numbers))


def test_what_comes_from_the_terminal_is_for_the_gateway_which_ends_its_servers(
    tmp_path: Path,
) -> None:
    with with_server(tmp_path) as (gateway, numbers, _said):
        os.killpg(gateway.pid, signal.SIGINT)
        assert gateway.wait(HANG_SECONDS) == 0
        assert not any(map(lives, numbers))
        assert gateway.stderr is not None
        said = gateway.stderr.read()
    assert "shutting down" in said
    assert f"server ended                   pid={numbers[0]} status=0" in said
    assert "has gone" not in said  # which a keeper says whose gateway has left something


@pytest.mark.parametrize(
    "first", ["", 'set -- env --ignore-signal=CHLD "$@"'], ids=["as usual", "SIGCHLD is ignored"]
)
def test_a_server_that_ends_by_itself_is_told_of(tmp_path: Path, first: str) -> None:
    with with_server(tmp_path, first) as (gateway, numbers, _said):
        os.kill(numbers[0], signal.SIGKILL)
        said = log_until(gateway, "server ended")
        assert f"pid={numbers[0]} signal=SIGKILL upstream=disk" in said
        assert "[warning" in said.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_run_ends_its_command_with_it(tmp_path: Path, number: signal.Signals) -> None:
    script = "(sleep 600 & echo $! > other; wait) & echo $$ $! > numbers; wait"
    with running("serve", "memory:1M", "--run", script, cwd=tmp_path) as gateway:
        for name in ("numbers", "other"):
            path = tmp_path / name
            wait_until(lambda path=path: path.exists() and path.read_text().endswith("\n"), name)  # type: ignore[misc] # bound now
        files = ((tmp_path / name).read_text() for name in ("numbers", "other"))
        numbers = [int(each) for text in files for each in text.split()]
        assert all(map(lives, numbers))
        gateway.send_signal(number)
        assert gateway.wait(HANG_SECONDS) == (0 if number == signal.SIGTERM else -number)
        wait_until(lambda: not any(map(lives, numbers)), "the end of the command")


def test_run_can_read_from_our_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [*GATEWAY, "serve", "memory:1M", "--run", 'read line; echo "got $line"'],
        cwd=tmp_path,
        input="something\n",
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "got something\n"), done.stderr


TLS = [
    pytest.param("nbds://127.0.0.1:0", ("--tls-certificates", "pki"), id="certificates"),
    pytest.param(
        "nbd+unix:///?socket=g.sock",
        ("--tls", "require", "--tls-certificates", "pki"),
        id="certificates, Unix socket",
    ),
    pytest.param("nbds://0.0.0.0:0", ("--tls-certificates", "pki"), id="any address"),
    pytest.param(
        "nbds://127.0.0.1:0",
        ("--tls-certificates", "server", "--no-tls-verify-client"),
        id="no certificate of a client is needed",
    ),
    pytest.param("nbds://127.0.0.1:0", ("--tls-psk", "pki/keys.psk"), id="key"),
    pytest.param(
        "nbds+unix:///?socket=g.sock",
        ("--tls-psk", "pki/keys.psk", "--tls-certificates", "server"),
        id="key, for there is no client's certificate",
    ),
]


@pytest.mark.parametrize(("listen", "arguments"), TLS)
def test_the_uri_of_run_has_what_a_client_is_let_in_by(
    tmp_path: Path, listen: str, arguments: tuple[str, ...]
) -> None:
    assert run("pki", "init", "pki", "--psk", "alice", cwd=tmp_path).returncode == 0
    (tmp_path / "server").mkdir()
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        (tmp_path / "server" / name).write_bytes((tmp_path / "pki" / name).read_bytes())
    command = 'cd / && nbdinfo --size "$uri"'
    done = run(
        *("serve", "memory:1M", "-l", listen, *arguments, "--run", command),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, f"{1 << 20}\n"), done.stderr


def test_who_needs_no_tls_is_given_a_plain_uri(tmp_path: Path) -> None:
    assert run("pki", "init", "pki", cwd=tmp_path).returncode == 0
    arguments = ("--tls", "allow", "--tls-certificates", "pki")
    done = run("serve", "memory:1M", "--run", 'echo "$uri"', *arguments, cwd=tmp_path)
    assert done.stdout.startswith("nbd+unix:///?socket="), done.stderr
    assert "tls" not in done.stdout


def test_a_directory_for_temporary_files_that_is_too_long_is_blamed(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    arguments = ("serve", "memory:1M", "--run", "true")
    done = run(*arguments, cwd=tmp_path, environment={"TMPDIR": str(long)})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"set TMPDIR to a shorter directory than {long}" in done.stderr
    assert "--listen" not in done.stderr
    assert not list(long.iterdir())


def test_sigusr1_writes_the_state_to_the_log(tmp_path: Path) -> None:
    arguments = ("serve", "memory:1M", "--listen", "nbd+unix:///?socket=g.sock")
    with running(*arguments, "--log-format", "json", cwd=tmp_path) as gateway:
        log_until(gateway, "listening")
        with RawClient(f"nbd+unix:///?socket={tmp_path}/g.sock") as client:
            client.socket.sendall(client.read_request(1, 0, 512))
            client.reply(512)
            gateway.send_signal(signal.SIGUSR1)
            text = log_until(gateway, "state of a session")
        said = [json.loads(line) for line in text.splitlines()]
        state = {each["event"]: each for each in said if each["event"].startswith("state of ")}
        assert state["state of the gateway"]["sessions"] == 1
        assert state["state of a listener"]["clients"] == 1
        assert state["state of an upstream"]["state"] == "up"
        assert state["state of a session"]["requests"] == {"READ": 1}
        [begins] = [each for each in said if each["event"] == "session begins"]
        assert state["state of a session"]["session"] == begins["session"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SIGHUP", "configuration reloaded"),
        ("SIGUSR1", "state of the gateway"),
        ("SIGUSR2", "not upgraded: SIGUSR2 was refused"),
    ],
)
def test_a_signal_that_comes_while_it_starts_waits(tmp_path: Path, name: str, said: str) -> None:
    """It comes with the first module that is no part of Python's own: with ours alone something is loaded."""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "cyclopts.py").write_text(
        "import os, signal, sys\n"
        f"os.kill(os.getpid(), signal.{name})\n"
        "sys.path.remove(os.path.dirname(__file__))\n"
        "del sys.modules['cyclopts']\n"
        "import cyclopts\n"
    )
    (tmp_path / "g.toml").write_text(
        '[[listen]]\nuri = "nbd+unix:///?socket=g.sock"\n[upstream.a]\nuri = "memory:1M"\n'
    )
    environment = f"PYTHONPATH={tmp_path}/early:$PYTHONPATH; export PYTHONPATH"
    with running("serve", "--config", "g.toml", cwd=tmp_path, first=environment) as gateway:
        log_until(gateway, said)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0


def test_no_signal_is_held_back_once_it_serves(tmp_path: Path) -> None:
    """Nor, therefore, in what it starts. (That of a shell says nothing: dash clears what it has inherited.)"""
    command = "grep SigBlk /proc/$PPID/status"
    done = run("serve", "memory:1M", "--run", command, cwd=tmp_path)
    assert done.stdout == f"SigBlk:\t{0:016}\n", done.stderr


def test_sigterm_ends_it_in_good_order(tmp_path: Path) -> None:
    listen = "nbd+unix:///?socket=g.sock"
    with running(
        *("serve", "memory:1M", "--listen", listen, "--socket-mode", "0640", "--pidfile", "pid"),
        cwd=tmp_path,
    ) as gateway:
        wait_until((tmp_path / "pid").exists, "the pid file")
        wait_until(lambda: (tmp_path / "pid").read_text() == f"{gateway.pid}\n", "the number")
        assert stat.S_IMODE((tmp_path / "g.sock").stat().st_mode) == 0o640
        assert size_of(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
    assert not (tmp_path / "g.sock").exists()
    assert not (tmp_path / "pid").exists()


@contextmanager
def connected(path: Path, count: int, says: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for client in clients:
            client.connect(str(path))
            if says:  # nothing cannot be sent to who has hung up, either
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


def test_what_clients_will_need_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(
        '[[listen]]\nuri = "nbd+unix:///?socket=g.sock"\n[upstream.a]\nuri = "memory:1M"\n'
        '[[export]]\nname = ""\nupstream = "a"\npolicies = [ { use = "audit", file = "no/audit" } ]\n'
    )
    with running("serve", "--config", "g.toml", cwd=tmp_path) as gateway:
        said = log_until(gateway, "clients will need what is not there")
    assert "audit: there is no directory no" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """With a line of what was cut, and the status that a shell gives for that signal."""
    (tmp_path / "g.toml").write_text(
        '[[listen]]\nuri = "nbd+unix:///?socket=g.sock"\n[upstream.a]\nuri = "memory:1M"\n'
        '[[export]]\nname = ""\nupstream = "a"\npolicies = [ { use = "delay", write = 3600 } ]\n'
        '[log]\nformat = "json"\n'
    )
    with running("serve", "--config", "g.toml", cwd=tmp_path) as gateway:
        log_until(gateway, "listening")
        with RawClient(f"nbd+unix:///?socket={tmp_path}/g.sock") as client:
            write = struct.pack("!IHHQQI", 0x25609513, 0, 1, 1, 0, 512) + bytes(512)
            client.socket.sendall(write + client.read_request(2, 4096, 512))
            assert client.reply(512)[0] == 2  # so the WRITE has begun
            gateway.send_signal(signal.SIGTERM)
            log_until(gateway, "shutting down")
            gateway.send_signal(number)
            said = log_until(gateway, "ending at once").splitlines()
            assert gateway.wait(HANG_SECONDS) == 128 + number
    line = json.loads(said[-1])
    assert (line["signal"], line["sessions_cut"]) == (number.name, 1)


def test_it_ends_after_the_last_client(tmp_path: Path) -> None:
    listen = "nbd+unix:///?socket=g.sock"
    arguments = ("serve", "memory:1M", "--listen", listen, "--exit-after-last-client")
    with running(*arguments, cwd=tmp_path) as gateway:
        log_until(gateway, "listening")
        assert size_of(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
        assert gateway.wait(HANG_SECONDS) == 0


FLAGS_AND_ABORT = b"\0\0\0\3IHAVEOPT\0\0\0\2\0\0\0\0"


@pytest.mark.parametrize("says", [b"", b"\0\0\0\3", FLAGS_AND_ABORT, b"GET / HTTP/1.0\r\n\r\n"])
def test_who_looks_whether_the_port_is_open_is_no_client(tmp_path: Path, says: bytes) -> None:
    """Not for --exit-after-last-client."""
    listen = ("--listen", "nbd+unix:///?socket=g.sock", "--log-level", "debug")
    arguments = ("serve", "memory:1M", *listen, "--exit-after-last-client")
    with running(*arguments, cwd=tmp_path) as gateway:
        log_until(gateway, "listening")
        with connected(tmp_path / "g.sock", 1, says) as [probe]:
            assert probe.recv(8) == b"NBDMAGIC"
        if says != FLAGS_AND_ABORT:  # which is in good order, and not told of
            log_until(gateway, "client ")
        with connected(tmp_path / "g.sock", 1) as [probe]:
            assert size_of(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
            assert gateway.poll() is None  # who is there still may become one
        assert gateway.wait(HANG_SECONDS) == 0


def test_who_looks_whether_an_oldstyle_port_is_open_is_no_client(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(
        '[[listen]]\nuri = "nbd+unix:///?socket=g.sock"\nstyle = "oldstyle"\n'
        '[upstream.a]\nuri = "memory:1M"\n'
    )
    with running(
        "serve", "--config", "g.toml", "--exit-after-last-client", cwd=tmp_path
    ) as gateway:
        log_until(gateway, "listening")
        with connected(tmp_path / "g.sock", 1) as [probe]:
            assert probe.recv(8) == b"NBDMAGIC"
        log_until(gateway, "session ended")
        assert size_of(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
        assert gateway.wait(HANG_SECONDS) == 0


def test_a_pidfile_of_another_gateway_is_left_alone(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    pid.write_text("1\n")  # as a gateway has left it that was killed
    arguments = ("serve", "memory:1M", "--pidfile", "pid", "--listen", "nbd+unix:///?socket=")
    with running(*arguments[:-1], f"{arguments[-1]}g.sock", cwd=tmp_path) as gateway:
        wait_until(lambda: pid.read_text() == f"{gateway.pid}\n", "the number")
        other = run(*arguments[:-1], f"{arguments[-1]}h.sock", "--run", "true", cwd=tmp_path)
        assert other.returncode == 1
        assert other.stderr.count("\n") == 1
        assert f"pid is held by another gateway (pid {gateway.pid})" in other.stderr
        assert pid.read_text() == f"{gateway.pid}\n"
        gateway.kill()
        gateway.wait(HANG_SECONDS)
    with running(*arguments[:-1], f"{arguments[-1]}g.sock", cwd=tmp_path) as gateway:
        wait_until(lambda: pid.read_text() == f"{gateway.pid}\n", "the number")
        pid.unlink()
        pid.write_text("another's\n")
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(HANG_SECONDS) == 0
    assert pid.read_text() == "another's\n"


@pytest.mark.parametrize("content", ["precious\n", "1" * 21])
def test_what_is_no_pidfile_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(content)
    serve = ("serve", "memory:1M", "--listen", "nbd+unix:///?socket=g.sock", "--run", "true")
    refused = run(*serve, "--pidfile", "pid", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == (
        "nbd-gateway: cannot write pid: it has something else in it than a process's number\n"
    )
    assert (tmp_path / "pid").read_text() == content


@pytest.mark.parametrize("whose", ["nobody's", "a process's that runs"])
def test_a_number_that_nobody_holds_is_written_over(whose: str, tmp_path: Path) -> None:
    """The system gives numbers away again."""
    content = "" if whose == "nobody's" else f"{os.getpid()}\n"
    (tmp_path / "pid").write_text(content)
    serve = ("serve", "memory:1M", "--listen", "nbd+unix:///?socket=g.sock")
    ran = run(*serve, "--pidfile", "pid", "--run", "cat pid", cwd=tmp_path)
    assert ran.returncode == 0
    assert ran.stdout.strip().isdigit()
    assert ran.stdout != content
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("leads_to", ["a file", "nothing"])
def test_a_pidfile_that_is_a_link_is_left_alone(leads_to: str, tmp_path: Path) -> None:
    there, pid = tmp_path / "precious", tmp_path / "pid"
    if leads_to == "a file":
        there.write_text("precious")
    pid.symlink_to(there)
    serve = ("serve", "memory:1M", "--listen", "nbd+unix:///?socket=g.sock", "--run", "true")
    refused = run(*serve, "--pidfile", "pid", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == "nbd-gateway: cannot write pid: it is a symbolic link\n"
    assert pid.is_symlink()
    assert there.exists() == (leads_to == "a file")
    if there.exists():
        assert there.read_text() == "precious"
    # Above it there may be links, as /var/run is one.
    (tmp_path / "run").mkdir()
    (tmp_path / "var-run").symlink_to("run")
    assert run(*serve, "--pidfile", "var-run/pid", cwd=tmp_path).returncode == 0


FIXED_NEWSTYLE_GO = b"\0\0\0\1IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0"


def test_a_shortage_of_descriptors_is_said_once_and_gets_over(tmp_path: Path) -> None:
    arguments = ("serve", "memory:1M", "--listen", "nbd+unix:///?socket=g.sock")
    with running(*arguments, cwd=tmp_path, first="ulimit -n 40") as gateway:
        log_until(gateway, "listening")
        with connected(tmp_path / "g.sock", 60, FIXED_NEWSTYLE_GO):
            said = log_until(gateway, "could not accept a client")
            time.sleep(0.5)  # for the gateway to try again some times
        assert size_of(f"nbd+unix:///?socket={tmp_path}/g.sock") == str(1 << 20)
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
        assert size_of(through) == str(64 << 20)
        # What is said of nbdcopy is true of the real one, of the way that does not hang.
        assert re.findall(r"nbdcopy (nbd://\S+)", said)[0] == through
        subprocess.run(["nbdcopy", through, "null:"], timeout=HANG_SECONDS, check=True)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(HANG_SECONDS) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("memory:1M", "--run", "true"), "True True"), (("--config", "missing.toml"), "False False")],
)
def test_garbage_is_looked_for_once_clients_can_connect_and_not_in_what_was_loaded(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    program = (
        "import gc, sys; from gateway.__main__ import main; main();"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    done = subprocess.run(
        [GATEWAY[0], "-c", program, "serve", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr
