"""What a running gateway shows of itself, beside what a client of it has done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.looking import BLOCK, READS, WRITES
from tests.cli.programs import GATEWAY
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

CONFIG = """
control.socket = "control"
listen = [ { uri = "nbd+unix:///?socket=s" } ]
upstream.main.uri = "memory:8M"
log.format = "json"
"""
ROOT = Path(__file__).resolve().parents[2]


def looked_at(tmp_path: Path, *verbs: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """Give what each verb has said (status, output, complaints), and the lines of the log."""
    (tmp_path / "gateway.toml").write_text(CONFIG)
    words = " ".join(f"'{verb}'" for verb in verbs)
    command = f"{sys.executable} -m tests.cli.looking control {words}"
    done = subprocess.run(
        [*GATEWAY, "serve", "--config", "gateway.toml", "--run", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return json.loads(done.stdout), lines


def test_each_verb_has_the_numbers_of_the_client(tmp_path: Path) -> None:
    said, lines = looked_at(
        tmp_path, "status --json", "sessions --json", "exports --json", "upstreams --json"
    )
    assert [status for status, _out, _err in said] == [0] * 4, said
    status, sessions, exports, upstreams = (json.loads(out) for _status, out, _err in said)
    asked = {"READ": READS, "WRITE": WRITES}
    moved = {"READ": READS * BLOCK, "WRITE": WRITES * BLOCK}
    assert (status["sessions"], status["stuck_sessions"], status["draining"]) == (1, 0, False)
    assert status["listeners"][0]["clients"] == 1
    assert (status["totals"]["requests"], status["totals"]["bytes"]) == (asked, moved)
    [session] = sessions["sessions"]
    assert (session["requests"], session["bytes"], session["errors"]) == (asked, moved, {})
    assert (session["export"], session["upstream"], session["waits_for"]) == ("", "main", None)
    [export] = exports["exports"]
    assert (export["export"], export["sessions"]) == ("", 1)
    assert (export["totals"]["requests"], export["totals"]["bytes"]) == (asked, moved)
    [upstream] = upstreams["upstreams"]
    assert (upstream["state"], upstream["sessions"], upstream["connections"]) == ("up", 1, 1)
    begins, ended = [line for line in lines if line["event"].startswith("session ")]
    assert {line["session"] for line in (begins, ended)} == {session["session"]}
    assert (ended["commands"], ended["end"]) == (asked, "client-eof")
    assert (ended["bytes_read"], ended["bytes_written"]) == (moved["READ"], moved["WRITE"])
    assert not [line for line in lines if line["event"] == "command done"]  # who asks is no news


def test_people_get_tables(tmp_path: Path) -> None:
    said, _lines = looked_at(tmp_path, "status", "sessions", "exports", "upstreams", "top")
    assert [status for status, _out, _err in said] == [0] * 5, said
    status, sessions, exports, upstreams, top = (out for _status, out, _err in said)
    assert re.search(r"^sessions +1; 1 since the start$", status, re.MULTILINE)
    assert re.search(rf"^requests +{READS + WRITES}$", status, re.MULTILINE)
    assert re.search(rf'^\S+-1 +"" +main .* {READS + WRITES} .* -$', sessions, re.MULTILINE)
    assert re.search(r'^"" +main +1 +1 ', exports, re.MULTILINE)
    assert re.search(r"^main +up +1 +1 ", upstreams, re.MULTILINE)
    assert top.startswith("1 session, 0 stuck\n")


def test_only_those_that_are_meant(tmp_path: Path) -> None:
    said, _lines = looked_at(
        tmp_path,
        "sessions --json --export other",
        "sessions --json --stuck",
        "sessions --json --upstream main",
    )
    counts = [len(json.loads(out)["sessions"]) for _status, out, _err in said]
    assert counts == [0, 0, 1]


def test_a_session_is_disconnected_and_the_log_says_by_whom(tmp_path: Path) -> None:
    said, lines = looked_at(
        tmp_path,
        "sessions --json",
        "disconnect SESSION --reason tidying",
        "disconnect SESSION",
        "disconnect nobody-7",
    )
    assert [status for status, _out, _err in said[:2]] == [0, 0], said
    assert said[1][1].startswith("session ")
    assert said[3][0] == 1
    assert "there is no session 'nobody-7'" in said[3][2]
    [ended] = [line for line in lines if line["event"] == "session ended"]
    assert ended["end"] == "disconnected-by-operator"
    assert ended["why"] == "an operator has disconnected it: tidying"


def test_a_drained_listener_takes_nobody_until_it_is_undrained(tmp_path: Path) -> None:
    said, lines = looked_at(
        tmp_path,
        "drain",
        "status --json",
        "probe nbd+unix:///?socket=s --timeout 5",
        "undrain",
        "status --json",
        "drain nbd://nowhere",
    )
    assert [status for status, _out, _err in said] == [0, 0, 1, 0, 0, 1], said
    assert "takes no more clients; 1 is there" in said[0][1]
    states = [json.loads(said[n][1])["listeners"][0]["drained"] for n in (1, 4)]
    assert states == [True, False]
    assert "there is no listener" in said[5][2]
    assert [line for line in lines if line["event"] == "client turned away"]


def test_a_disabled_upstream_refuses_new_clients_alone(tmp_path: Path) -> None:
    said, _lines = looked_at(
        tmp_path,
        "disable main",
        "upstreams --json",
        "probe nbd+unix:///?socket=s --timeout 5",
        "sessions --json",
        "enable main",
        "upstreams --json",
        "disable other",
    )
    assert [said[n][0] for n in (0, 1, 3, 4, 5, 6)] == [0, 0, 0, 0, 0, 1], said
    assert "1 session goes on" in said[0][1]
    states = [json.loads(said[n][1])["upstreams"][0]["state"] for n in (1, 5)]
    assert states == ["disabled", "up"]
    assert said[2][0] == 1
    assert len(json.loads(said[3][1])["sessions"]) == 1
    assert "there is no upstream 'other'" in said[6][2]


def test_who_asks_wrongly_is_told(tmp_path: Path) -> None:
    said, _lines = looked_at(tmp_path, "status --watch 0", "top --watch 0", "disconnect")
    assert [status for status, _out, _err in said] == [2, 2, 2], said
    assert "expected --watch of 0.1 to 3600 seconds" in said[0][2]


def test_the_example_sums_what_the_log_says(tmp_path: Path) -> None:
    _said, lines = looked_at(tmp_path, "status")
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "traffic-by-identity.py", tmp_path / "log"],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    head, row = (line.split("\t") for line in done.stdout.splitlines())
    assert head[1:] == ["sessions", "requests", "read", "written", "errors"]
    asked = [1, READS + WRITES, READS * BLOCK, WRITES * BLOCK, 0]
    assert row[1:] == [str(number) for number in asked]


PAUSED = ((4, ""), (5, "'' "), (6, ""))
"""Which of the verbs below say so, and what is before that."""


def test_a_pause_says_by_whom_and_since_when(tmp_path: Path) -> None:
    said, _lines = looked_at(
        tmp_path,
        "exports --json",
        "pause --upstream main",
        "exports --json",
        "sessions --json",
        "exports",
        "status",
        "top",
        "resume --upstream main",
    )
    assert [status for status, _out, _err in said] == [0] * 8, said
    before, after = (json.loads(said[n][1])["exports"][0] for n in (0, 2))
    assert (before["paused"], before["paused_by"], before["paused_since"]) == (False, None, None)
    assert after["paused"]
    assert re.fullmatch(r"process \d+ of user \d+", after["paused_by"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", after["paused_since"])
    [session] = json.loads(said[3][1])["sessions"]
    assert (session["waits_for"], session["stuck"]) == ("pause", False)
    by_whom = f"by {after['paused_by']} since {after['paused_since']}"
    assert all(f"paused {word}{by_whom}" in " ".join(said[n][1].split()) for n, word in PAUSED)
