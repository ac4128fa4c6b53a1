"""Tables for people stay tables, whatever names clients ask for."""

from __future__ import annotations

import pytest

from gateway.cli.showing import MAX_CELL_CHARACTERS, table

WHY = "a reason, which is a sentence " * 20


@pytest.mark.parametrize("name", ["x" * 4096, "\x1b" * 4096, "é" * 2048, "x" * 100])
def test_a_long_name_leaves_other_rows_readable(name: str) -> None:
    lines = table(("EXPORT", "READ", "WHY"), [(name, 1, ""), ("disk", 20, WHY)]).splitlines()
    assert [len(line) for line in lines[:2]] == [MAX_CELL_CHARACTERS + len("  READ  WHY"), 106]
    assert lines[1].startswith(name[:1] if name.isprintable() else "\\x1b")
    assert ("…" in lines[1]) == (len(name) > MAX_CELL_CHARACTERS)
    assert lines[2].endswith(WHY.rstrip())
    assert "\x1b" not in "".join(lines)
