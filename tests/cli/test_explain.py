"""nbd-gateway explain: what is said of real and embedded upstreams."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from gateway.cli import main

CONFIG = """
[[listen]]
uri = "nbd://127.0.0.1:0"
[upstream.plain]
uri = "memory:1G"
[upstream.old]
uri = "legacy:qemu-3.0"
connections = "shared:4"
[upstream.alone]
uri = "legacy:qemu-3.0"
[upstream.many]
uri = "memory:1G"
connections = 4
[upstream.demanding]
uri = "legacy:qemu-3.0"
connections = 4
connections-required = true
[upstream.blocks]
command = ["nbdkit", "memory", "1G", "--filter=blocksize-policy", "blocksize-minimum=4096"]
[upstream.dead]
uri = "nbd+unix:///?socket=/nonexistent"
[[export]]
name = "plain"
upstream = "plain"
upstream-name = ""
[[export]]
name = "old"
upstream = "old"
upstream-name = ""
[[export]]
name = "alone"
upstream = "alone"
upstream-name = ""
[[export]]
name = "many"
upstream = "many"
upstream-name = ""
[[export]]
name = "demanding"
upstream = "demanding"
upstream-name = ""
[[export]]
name = "blocks"
upstream = "blocks"
[[export]]
name = "dead"
upstream = "dead"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG)
    return path


def rows(text: str) -> dict[str, list[str]]:
    """The table, by command."""
    cells = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_where_both_sides_agree_all_is_fast(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(config), "--export", "plain"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["READ"] == ["FAST", "FAST", "FAST"]
    assert found["BLOCK_STATUS"] == ["REFUSED", "FAST", "FAST"]


def test_what_differs_has_its_reason(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(config), "--export", "alone"]) == 0
    said = capsys.readouterr().out
    assert rows(said)["READ"] == ["FAST", "FAST", "REFRAMED"]
    assert rows(said)["CACHE"] == ["HERE", "HERE", "HERE"]
    assert "quirks: qemu-multi-conn-bit" in said
    assert "the client's framing is extended, the server's structured" in said
    assert main(["explain", str(config), "--export", "old"]) == 0
    said = capsys.readouterr().out
    assert rows(said)["WRITE"] == 3 * ["TRANSLATED"]
    assert "clients share one connection" in said


@pytest.mark.parametrize(
    ("export", "line", "document"),
    [
        ("plain", "one for each client", ["per-client", False, False, 1, None]),
        ("many", "4 for each client", ["4", False, False, 4, None]),
        (
            "old",
            "for all clients, one connection instead of 4: the server",
            ["shared:4", False, True, 1],
        ),
    ],
)
def test_connections(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    export: str,
    line: str,
    document: list[object],
) -> None:
    assert main(["explain", str(config), "--export", export]) == 0
    assert f"connections: {line}" in capsys.readouterr().out
    assert main(["explain", str(config), "--export", export, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["connections"]
    assert list(said) == ["wanted", "required", "shared", "count", "reason"]
    assert [*said.values()][: len(document)] == document
    assert (said["reason"] is None) is (len(document) == 5)


def test_connections_required(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(config), "--export", "demanding"]) == 1
    said = capsys.readouterr()
    reason = "connections-required = true: one connection instead of 4: the server does not offer"
    assert said.err == ""
    assert said.out.count(reason) == 1
    assert re.search(f"denied: .*{reason}", said.out)
    assert "the client is told ERR_POLICY, in these words" in said.out
    assert main(["explain", str(config), "--export", "demanding", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["denied"]["told"] == "ERR_POLICY"
    assert (document["connections"]["required"], document["connections"]["count"]) == (True, None)


@pytest.mark.real
def test_a_real_server(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(config), "--export", "blocks"]) == 0
    said = capsys.readouterr().out
    assert "block sizes 4096" in said
    assert "blocks of 4096 bytes are read, changed and written" in said


@pytest.mark.parametrize(
    ("export", "why", "told"),
    [
        ("dead", "upstream 'dead' is unreachable", "ERR_SHUTDOWN"),
        ("none", "there is no export 'none'", "ERR_UNKNOWN"),
    ],
)
def test_what_is_not_there(
    config: Path, capsys: pytest.CaptureFixture[str], export: str, why: str, told: str
) -> None:
    assert main(["explain", str(config), "--export", export]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count(why) == 1
    assert re.search(f"denied: .*{why}", said.out)
    assert f"the client is told {told}" in said.out
    assert main(["explain", str(config), "--export", export, "--json"]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    denied = json.loads(said.out)["denied"]
    assert denied["told"] == told
    assert why in denied["text"]


# --- docs/explain.md

MANUAL = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of the manual's example, beside its configuration."""
    monkeypatch.chdir(tmp_path)
    [text] = re.findall(r"(?ms)^```toml\n(.*?)^```", MANUAL)
    (tmp_path / "gateway.toml").write_text(text)
    [command] = re.findall(r"(?m)^\$ nbd-gateway (.*)$", MANUAL)
    return shlex.split(command)


def test_the_example_prints_what_it_says(
    documented: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    [block] = re.findall(r"(?ms)^```console\n\$ [^\n]*\n(.*?)^```", MANUAL)
    assert main(documented) == 0
    assert capsys.readouterr().out == block


def test_the_keys_are_those_of_the_manual(
    documented: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*documented, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    [_, about] = MANUAL.split("## `--json`")
    assert list(said) == re.findall(r"(?m)^\| `([a-z_]+)` \|", about)
    for each in (said["client"], *said["policies"], *said["contexts"], *said["limits"]):
        assert {f"`{key}`" for key in each} <= {*re.findall(r"`[a-z_]+`", about)}
    assert list(said["framings"]) == ["simple", "structured", "extended"]
    view = said["framings"]["extended"]
    [_, rest] = about.split("Each of `framings` has")
    for keys in (view, view["steps"][0], view["commands"]["WRITE"]):
        assert {f"`{key}`" for key in keys} <= {*re.findall(r"`[a-z_]+`", rest)}
    assert said["rule"] == "rule 'backup'"
    assert [each["use"] for each in said["policies"]] == [
        *("readonly", "contexts", "limit", "protect"),
    ]
    assert "READ_ONLY" in view["flags"]
    assert said["limits"] == [{"policy": "limit", "mode": "enforce", "in_flight": 16, "rates": []}]


def test_a_mistake_on_the_command_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(config), "--as", "blub=1"]) == 2
    assert "expected one of cn, issuer-cn" in capsys.readouterr().err


def test_a_rate_that_is_observed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        '[[listen]]\nuri = "nbd://127.0.0.1:0"\n[upstream.m]\nuri = "memory:1M"\n'
        '[[export]]\nname = "m"\nupstream = "m"\nupstream-name = ""\n'
        'policies = [ { use = "rate", bytes-per-second = "8M", mode = "observe" } ]\n'
    )
    assert main(["explain", str(path), "--export", "m"]) == 0
    expected = "observed: limit: 8388608 bytes per second, burst 838860.8 (rate)"
    assert expected in capsys.readouterr().out.splitlines()
    assert main(["explain", str(path), "--export", "m", "--json"]) == 0
    [limit] = json.loads(capsys.readouterr().out)["limits"]
    assert limit["mode"] == "observe"
