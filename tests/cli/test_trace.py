"""trace, as a program that looks on while real clients use a real gateway."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.cli import app
from tests.cli.programs import GATEWAY, size_of
from tests.interop.gateways import Configured
from tests.interop.processes import run
from tests.interop.servers import free_port
from tests.tools.patience import HANG_SECONDS
from tests.trace.captures import read

pytestmark = pytest.mark.real

PAGE = (Path(__file__).parents[2] / "docs/trace.md").read_text()
COMMANDS = re.findall(r"(?m)^nbd-gateway (.*)$", PAGE)
MEMORY = '[upstream.m]\nuri = "memory:4M"\n[[export]]\nname = "disk"\nupstream = "m"\nupstream-name = ""\n'
LINE = re.compile(
    r" *\d+\.\d{6} +(?:\w+-\d+|\*) (?:(?:client|server) (?:->|<-) |begins: |ended: ).+"
)


@contextmanager
def gateway(workdir: Path) -> Iterator[Configured]:
    made = Configured(workdir, MEMORY)
    try:
        yield made
        assert made.process.stop() == 0
    finally:
        made.process.kill()


@contextmanager
def tracing(made: Configured, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A trace that has begun."""
    command = [*GATEWAY, "trace", "disk", "--config", str(made.config), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert "is traced for" in said, said
            yield process
        finally:
            process.kill()


def shown(process: subprocess.Popen[str], until: str) -> list[str]:
    """The lines up to one that has some words in it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        assert LINE.fullmatch(line.rstrip("\n")), line
        lines.append(line)
        if until in line:
            return lines
    raise AssertionError(f"it has ended, and nothing has {until} in it: {lines}")


def test_a_conversation_and_a_capture_of_it(workdir: Path) -> None:
    with gateway(workdir) as made:
        capture = workdir / "c.pcapng"
        with tracing(made, "--seconds", "3600", "--pcapng", str(capture)) as process:
            assert size_of(made.uri("disk")) == str(4 << 20)
            subprocess.run(
                ["nbdcopy", "--requests=1", "--no-extents", made.uri("disk"), "null:"],
                timeout=HANG_SECONDS,
                check=True,
            )
            lines = shown(process, "ended: ") + shown(process, "ended: ")
            assert any("client <- READ 0+" in line for line in lines)
            assert any("server -> READ 0+" in line for line in lines)
            assert any(re.search(r"server <- OFFSET_\w+ 0\+", line) for line in lines)
            assert any(re.search(r"client -> OFFSET_\w+ 0\+", line) for line in lines)
            assert "client <- DISC" in "".join(lines)
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            lines += process.stdout.readlines()
            assert process.wait(HANG_SECONDS) == 130
        packets = read(capture.read_bytes())
        texts = [line.rstrip("\n").partition(way)[2] for line in lines for way in ("-> ", "<- ")]
        comments = [each.comment.partition(": ")[2] for each in packets]
        expected = [text for text in texts if text]
        assert comments == expected[: len(comments)]
        assert len(expected) - len(comments) <= 1  # which Ctrl-C has kept from the file
        assert {each.target.rpartition(":")[0] for each in packets} == {
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.3",
        }
        assert size_of(made.uri("disk")) == str(4 << 20)


def test_it_ends_by_itself(workdir: Path) -> None:
    with gateway(workdir) as made, tracing(made, "--seconds", "0.1") as process:
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0
        assert out == ""
        assert err == "nbd-gateway: 0.1 s are over: 0 messages\n"


def test_it_is_killed(workdir: Path) -> None:
    with gateway(workdir) as made:
        for _ in range(2):  # else there would be one already
            with tracing(made, "--seconds", "3600") as process:
                process.kill()
                process.wait(HANG_SECONDS)
            assert size_of(made.uri("disk")) == str(4 << 20)


def test_the_gateway_goes(workdir: Path) -> None:
    with gateway(workdir) as made, tracing(made, "--seconds", "3600") as process:
        made.process.signal(signal.SIGTERM)
        _out, err = process.communicate(timeout=HANG_SECONDS)
        assert err == "nbd-gateway: the gateway has ended the trace\n"
        assert process.returncode == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_can_be_meant(command: str) -> None:
    function, _bound, rest = app.parse_args(shlex.split(command))
    assert function.__name__ == "trace"
    assert not rest


def test_lines_of_the_page_are_such_as_it_prints() -> None:
    [block] = re.findall(r"(?ms)^```\n( +\d.*?)^```", PAGE)
    assert all(LINE.fullmatch(line) for line in block.splitlines())


REFUSED = {
    "an export that is not there": (("no-disk",), 1, "there is no export 'no-disk'"),
    "no gateway": (("disk", "--socket", "/nowhere/c"), 1, "no gateway listens at /nowhere/c"),
    "no such folder": (("disk", "--pcapng", "/nowhere/c"), 1, "/nowhere/c: No such file"),
    "a full disk": (("disk", "--pcapng", "/dev/full"), 1, "/dev/full: No space left on device"),
    "no name": ((), 2, "requires an argument"),
    "a name with NUL": (("a" * 5000,), 2, "4096 bytes"),
    "too long": (("disk", "--seconds", "86400"), 1, "up to 3600"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_refused(workdir: Path, refused: str) -> None:
    arguments, status, words = REFUSED[refused]
    with gateway(workdir) as made:
        done = subprocess.run(
            [*GATEWAY, "trace", *arguments, "--config", str(made.config)],
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_tls_is_seen_in_the_clear(workdir: Path) -> None:
    run(*GATEWAY, "pki", "init", workdir / "pki")
    port = free_port()
    tls = f'certificates = "{workdir / "pki"}"\n'
    made = Configured(workdir, MEMORY + f'[[listen]]\nuri = "nbds://127.0.0.1:{port}"\n{tls}')
    uri = f"nbds://localhost:{port}/disk?tls-certificates={workdir / 'pki'}"
    try:
        with tracing(made, "--seconds", "3600", "--who", "*127.0.0.1*") as process:
            run("nbdcopy", "--requests=1", "--no-extents", uri, "null:")
            lines = shown(process, "ended: ")
            process.kill()
        assert made.process.stop() == 0
    finally:
        made.process.kill()
    assert any("client <- READ 0+" in line for line in lines)
    assert not any("no message" in line for line in lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_nobody_else_may_look_on(workdir: Path) -> None:
    """Neither by the socket's mode, nor by what the gateway says if that is open."""
    with gateway(workdir) as made:
        workdir.chmod(0o755)
        assert made.socket.stat().st_mode & 0o777 == 0o600
        made.socket.chmod(0o666)
        asked = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            's.sendall(b\'{"verb": "trace", "export": "disk"}\\n\'); print(s.makefile().read())'
        )
        done = subprocess.run(
            ["/usr/bin/python3", "-c", asked, str(made.socket)],
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            user=65534,
            check=True,
        )
        assert "only the gateway's own user and root may ask" in done.stdout
