"""nbd-gateway explain: what is said of real and embedded upstreams."""

from __future__ import annotations

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
    assert main(["explain", str(config), "--export", "old"]) == 0
    said = capsys.readouterr().out
    assert rows(said)["READ"] == ["FAST", "FAST", "REFRAMED"]
    assert rows(said)["CACHE"] == ["HERE", "HERE", "HERE"]
    assert "quirks: qemu-multi-conn-bit" in said
    assert "the client's framing is extended, the server's structured" in said


def test_a_real_server(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(config), "--export", "blocks"]) == 0
    said = capsys.readouterr().out
    assert "block sizes 4096" in said
    assert "blocks of 4096 bytes are read, changed and written" in said


@pytest.mark.parametrize(
    ("export", "why"),
    [("dead", "upstream 'dead' is unreachable"), ("none", 'no export "none" is let through')],
)
def test_what_is_not_there(
    config: Path, capsys: pytest.CaptureFixture[str], export: str, why: str
) -> None:
    assert main(["explain", str(config), "--export", export]) == 1
    said = capsys.readouterr()
    assert why in said.err
    assert not said.out
    assert "Traceback" not in said.err
