"""Tickets with real programs: a gateway that is killed, and clients with several connections."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.programs import GATEWAY
from tests.interop.rawclient import RawClient
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

CONFIG = """
control.socket = "c"
listen = [ { uri = "nbd+unix:///?socket=s" } ]
upstream.m.uri = "memory:8M"
tickets.directory = "t"
"""


@contextmanager
def gateway(cwd: Path) -> Iterator[subprocess.Popen[str]]:
    (cwd / "gateway.toml").write_text(CONFIG)
    process = subprocess.Popen(
        [*GATEWAY, "serve", "--config", "gateway.toml"], cwd=cwd, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "listening" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate(timeout=HANG_SECONDS)


def done(cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


def export(cwd: Path, *words: str) -> str:
    said = done(cwd, *GATEWAY, "export", *words, "--socket", "c")
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def test_a_ticket_serves_nbdcopy_once_and_is_there_after_a_kill(tmp_path: Path) -> None:
    with gateway(tmp_path) as process:
        once, later = (
            export(tmp_path, "add", "--upstream", "m", "--upstream-name", "", *more)
            for more in (("--once",), ("--for", "86400"))
        )
        uri = f"nbd+unix:///{once}?socket={tmp_path}/s"
        with RawClient(uri):  # the same client: the use goes on until it has been looked at
            copied = done(tmp_path, "nbdcopy", "--connections=4", uri, "null:")
            assert copied.returncode == 0, copied.stderr
            [used] = [
                each
                for each in json.loads(export(tmp_path, "list", "--json"))["tickets"]
                if each["export"] == once
            ]
            assert used["used_by"].startswith("unix")
            process.kill()
        process.wait(HANG_SECONDS)
    with gateway(tmp_path):
        there = json.loads(export(tmp_path, "list", "--json"))["tickets"]
        # The one for one use is there for 10 seconds, for whom it was.
        assert later in {each["export"] for each in there} <= {once, later}
        size = done(tmp_path, "nbdinfo", "--size", f"nbd+unix:///{later}?socket=s")
        assert size.stdout == f"{8 << 20}\n", size.stderr
        soon = export(tmp_path, "add", "--upstream", "m", "--upstream-name", "", "--for", "0.1")
        deadline = time.monotonic() + HANG_SECONDS
        while done(tmp_path, "nbdinfo", "--size", f"nbd+unix:///{soon}?socket=s").returncode == 0:
            assert time.monotonic() < deadline
    checked = done(tmp_path, *GATEWAY, "check", "gateway.toml")
    assert "made at run time, in t" in checked.stdout  # that for one use may be gone by now
    words = ("explain", "gateway.toml", "--export", later, "--as", "unix-user=0")
    explained = done(tmp_path, *GATEWAY, *words)
    assert explained.returncode == 0, explained.stderr
    assert "  ticket until = " in explained.stdout


def test_a_directory_has_one_gateway_and_must_be_there(tmp_path: Path) -> None:
    with gateway(tmp_path):
        (tmp_path / "other.toml").write_text(CONFIG.replace('"c"', '"d"').replace("=s", "=z"))
        second = done(tmp_path, *GATEWAY, "serve", "--config", "other.toml")
        assert second.returncode == 1
        assert second.stderr == "nbd-gateway: tickets: t cannot be had: another gateway has it\n"
    (tmp_path / "gateway.toml").write_text(CONFIG.replace('"t"', '"no/t"'))
    for verb in (("serve", "--config", "gateway.toml"), ("check", "gateway.toml")):
        said = done(tmp_path, *GATEWAY, *verb)
        assert said.returncode == 1
        assert "no" in said.stderr
        assert "tickets" in said.stderr
