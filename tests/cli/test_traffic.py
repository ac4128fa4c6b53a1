"""examples/traffic-by-identity.py: what it makes of lines of a log."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "traffic-by-identity.py"
MAIN = runpy.run_path(str(SCRIPT))["main"]

IDENTITIES = {
    "10.0.0.5:1": ("", "10.0.0.5"),
    "[fe80::1%eth0]:2": ("", "[fe80::1%eth0]"),
    "unix:pid=7,uid=1000": ("", "unix:uid=1000"),
    "10.0.0.6:3": ("cn:a b sha256:00ff 10.0.0.6:3", "cn:a b sha256:00ff"),
    "unix:pid=8,uid=1001": ("psk:vm-1 unix:pid=8,uid=1001", "psk:vm-1"),
    "10.0.0.7:4": ("10.0.0.7:4", "10.0.0.7"),  # TLS, and nothing proved by it
}
"""A client -> what the log says of who it is over TLS, and whose row it is in."""


def ended(client: str, **more: object) -> dict[str, Any]:
    return {
        "event": "session ended",
        "client": client,
        "commands": {"READ": 2, "FLUSH": 1},
        "bytes_read": 100,
        "bytes_written": 0,
        "errors": {"READ EIO": 1},
        **more,
    }


def summed(path: Path, lines: list[dict[str, Any]]) -> int:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "a traceback\n")
    return int(MAIN([str(path)]))


@pytest.mark.parametrize("client", IDENTITIES)
def test_connections_of_one_are_one_row(
    client: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who, row = IDENTITIES[client]
    first = ended(client, **({"who": who} if who else {}))
    another = client.replace("pid=", "pid=1") if client.startswith("unix:") else f"{client}1"
    lines = [first, json.loads(json.dumps(first).replace(client, another))]
    assert summed(tmp_path / "log", lines) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"{row}\t2\t6\t200\t0\t2"]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ({"event": "log lines left out", "events": {"session ended": 3, "others": 2}}, 5),
        ({"event": "log lines left out", "events": {"session begins": 3}}, 0),
        ({"event": "log lines lost", "lines": 7}, 7),
    ],
)
def test_it_says_what_is_missing(
    line: dict[str, Any], count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summed(tmp_path / "log", [ended("10.0.0.5:1"), line]) == (3 if count else 0)
    assert capsys.readouterr().err == (
        f"up to {count} sessions more: their lines were left out, or lost\n" if count else ""
    )
