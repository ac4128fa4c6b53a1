"""The gateway as a service: what it tells systemd, in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.access.installed import Installed
from tests.app.managers import ServiceManager, value
from tests.cli.programs import GATEWAY, size_of
from tests.interop.processes import listening, wait_until
from tests.interop.servers import free_port
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
control.socket = "control"
listen = [ { uri = "nbd+unix:///?socket=s" } ]
upstream.main.uri = "memory:8M"
"""


@pytest.fixture
def systemd(tmp_path: Path, workdir: Path) -> Iterator[ServiceManager]:
    (tmp_path / "gateway.toml").write_text(CONFIG)
    made = ServiceManager(workdir / "notify")
    yield made
    made.close()


@contextmanager
def service(
    systemd: ServiceManager,
    cwd: Path,
    *arguments: str | Path,
    environment: Mapping[str, str],
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*GATEWAY, "serve", "--config", "gateway.toml", *arguments],
        cwd=cwd,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    systemd.service = process
    try:
        yield process
    finally:
        systemd.service = None
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=HANG_SECONDS)


def test_a_service_says_when_it_is_ready_reloads_and_ends(
    tmp_path: Path, systemd: ServiceManager
) -> None:
    environment = systemd.environment(watchdog_seconds=0.2)
    with service(systemd, tmp_path, environment=environment) as process:
        ready = systemd.told()
        assert ready[0] == "READY=1"
        assert int(value(ready, "MAINPID")) == process.pid
        assert size_of(f"nbd+unix:///?socket={tmp_path}/s") == str(8 << 20)
        for _ in range(3):
            systemd.until("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        assert systemd.until("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        systemd.until("READY=1")
        process.send_signal(signal.SIGTERM)
        stopping = systemd.until("STOPPING=1")
        assert 30e6 < int(value(stopping, "EXTEND_TIMEOUT_USEC")) < 60e6
        assert process.wait(HANG_SECONDS) == 0


def test_what_it_starts_cannot_speak_in_its_name(tmp_path: Path, systemd: ServiceManager) -> None:
    """They would say that we have ended, or that we are alive when we are not."""
    environment = systemd.environment(watchdog_seconds=60) | {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with service(
        systemd, tmp_path, "--run", "env > environment", environment=environment
    ) as process:
        assert process.wait(HANG_SECONDS) == 0
    said = (tmp_path / "environment").read_text()
    for word in ("NOTIFY_", "WATCHDOG_", "LISTEN_"):
        assert f"\n{word}" not in f"\n{said}"


BLOCKS = """
from pathlib import Path

from gateway.policy import Next, Policy, Request, Result


class Blocks(Policy):
    file: str

    async def read(self, request: Request, next: Next) -> Result:
        Path(self.file).touch()
        while True:
            pass
"""

SILENT_SECONDS = 1.0
"""For how long the stand-in listens to one that is blocked: five times what it has asked for."""


def test_one_whose_hub_is_blocked_gives_no_sign_of_life_and_is_ended(
    tmp_path: Path, workdir: Path, systemd: ServiceManager
) -> None:
    Installed(workdir).install("acme", {"blocks.py": BLOCKS})
    blocked = tmp_path / "blocked"
    export = f"""
        [[export]]
        name = ""
        upstream = "main"
        policies = [{{ use = "blocks", file = "{blocked}" }}]
    """
    (tmp_path / "gateway.toml").write_text(CONFIG + export)
    paths = os.pathsep.join([str(workdir), str(ROOT)])
    environment = systemd.environment(watchdog_seconds=0.2) | {"PYTHONPATH": paths}
    with service(systemd, tmp_path, environment=environment) as process:
        systemd.until("WATCHDOG=1")
        uri = f"nbd+unix:///?socket={tmp_path}/s"
        client = subprocess.Popen(["qemu-io", "-f", "raw", "-r", "-c", "read 0 512", uri])
        try:
            while not blocked.exists():
                systemd.at_once(0.01)
            systemd.at_once()
            assert systemd.at_once(SILENT_SECONDS) == []
            process.send_signal(signal.SIGABRT)  # as systemd does
            assert process.wait(HANG_SECONDS) == -signal.SIGABRT
            assert process.stderr is not None
            said = process.stderr.read()
        finally:
            client.kill()
            client.wait(HANG_SECONDS)
    assert "blocks.py" in said  # where it was
    # The next one starts, whatever this one has left.
    (tmp_path / "gateway.toml").write_text(CONFIG)
    with service(systemd, tmp_path, environment=systemd.environment()) as process:
        assert systemd.until("READY=1")
        assert size_of(uri) == str(8 << 20)


# --- Sockets that systemd hands over


ACTIVATED = """
[[listen]]
uri = "nbd://127.0.0.1:{port}"
{descriptor}
[upstream.main]
uri = "memory:8M"
"""


@contextmanager
def activated(
    cwd: Path, port: int, *, names: tuple[str, ...] = (), descriptor: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """The gateway behind systemd-socket-activate, which starts it when the first client comes."""
    (cwd / "gateway.toml").write_text(ACTIVATED.format(port=port, descriptor=descriptor))
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *names]
    process = subprocess.Popen(
        [*command, *GATEWAY, "serve", "--config", "gateway.toml"],
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        wait_until(lambda: listening(f"nbd://127.0.0.1:{port}"), "it listens")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=HANG_SECONDS)


@pytest.mark.parametrize(
    ("names", "descriptor"),
    [((), ""), (("--fdname=nbd",), 'descriptor = "nbd"')],
    ids=["by its address", "by its name"],
)
def test_a_socket_of_systemd_is_served(
    tmp_path: Path, names: tuple[str, ...], descriptor: str
) -> None:
    port = free_port()
    with activated(tmp_path, port, names=names, descriptor=descriptor) as process:
        assert size_of(f"nbd://127.0.0.1:{port}") == str(8 << 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0


def test_a_socket_of_systemd_that_nobody_names_ends_the_start(tmp_path: Path) -> None:
    port = free_port()
    with activated(
        tmp_path, port, names=("--fdname=web",), descriptor='descriptor = "nbd"'
    ) as process:
        with socket.create_connection(("127.0.0.1", port)):
            assert process.wait(HANG_SECONDS) == 1
        assert process.stderr is not None
        said = process.stderr.read().splitlines()[-1]
    assert "named by no [[listen]], neither by its descriptor nor by its uri:" in said
    assert f'descriptor 3 "web" of 127.0.0.1:{port}' in said


# --- The page


def test_what_the_page_has_its_reader_type_works(tmp_path: Path) -> None:
    """But for systemctl, of which there may be none."""
    page = (ROOT / "docs" / "service.md").read_text()
    block = page.partition("```\n")[2].partition("```")[0]
    lines = [line for line in block.splitlines() if line.startswith("nbd-gateway ")]
    assert len(lines) == 3
    (tmp_path / "nbd-gateway.toml").write_text(CONFIG.replace("?socket=s", f"?socket={tmp_path}/s"))
    script = "\n".join(lines).replace("/etc/systemd/system", str(tmp_path))
    script = script.replace("/etc/", f"{tmp_path}/").replace("nbd-gateway ", '"$@" ')
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", script, "sh", *GATEWAY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    units = [tmp_path / f"nbd-gateway.{kind}" for kind in ("service", "socket")]
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
