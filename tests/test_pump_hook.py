"""How the compiled pump is built (`packaging/pump.py`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.packing import packing

PUMP = packing("pump")


def compiler(monkeypatch: pytest.MonkeyPatch, there: Path, script: str) -> None:
    """Have this shell script be the compiler; `$made` is the file that it has to make."""
    path = there / "cc"
    path.write_text(f"#!/bin/sh\nfor made; do :; done\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


def build(there: Path) -> tuple[dict[str, Any], list[str]]:
    """Build in this directory; give what is said of the wheel, and of what went wrong."""
    warnings: list[str] = []
    said: dict[str, Any] = {"artifacts": []}
    PUMP.add_pump(there, said, warnings.append)
    return said, warnings


@pytest.fixture
def there(tmp_path: Path) -> Path:
    source = tmp_path / PUMP.SOURCE
    source.parent.mkdir(parents=True)
    source.write_text("int main(void);")
    return tmp_path


def test_it_is_a_part_of_the_wheel(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBD_GATEWAY_PUMP", raising=False)
    compiler(monkeypatch, there, 'echo new > "$made"')
    said, warnings = build(there)
    [artifact] = said["artifacts"]
    assert (there / artifact.lstrip("/")).read_text() == "new\n"
    assert not said["pure_python"]
    assert not warnings


def test_an_old_one_is_not_left_where_none_can_be_built(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not know what Python has changed since."""
    monkeypatch.delenv("NBD_GATEWAY_PUMP", raising=False)
    compiler(monkeypatch, there, 'echo old > "$made"')
    build(there)
    compiler(monkeypatch, there, 'echo half > "$made"; echo no headers >&2; exit 1')
    said, warnings = build(there)
    assert said == {"artifacts": []}
    assert "no headers" in warnings[0]
    assert [path.name for path in (there / PUMP.SOURCE).parent.iterdir()] == ["_pump.c"]


def test_two_are_built_at_a_time(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(monkeypatch, there, 'echo a > "$made"; sleep 0.2; echo b >> "$made"')
    target = there / "made.so"

    def one(_number: int) -> None:
        PUMP.compile_pump(there / PUMP.SOURCE, target)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert target.read_text() == "a\nb\n"
    assert {path.name for path in there.iterdir()} == {"made.so", "cc", "gateway"}
