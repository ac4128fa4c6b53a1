"""Pages of docs/ of which parts are drawn: what stands between two marks is made anew."""

from __future__ import annotations

import re
from collections.abc import Mapping


def with_parts(page: str, kind: str, parts: Mapping[str, str]) -> str:
    """Give a page with these texts between their marks, `<!-- kind: name -->` and `<!-- end -->`."""
    for name, part in parts.items():
        begin, end = f"<!-- {kind}: {name} -->", "<!-- end -->"
        text = f"{begin}\n{part}\n{end}"
        pattern = f"{re.escape(begin)}\n.*?{re.escape(end)}"
        page, found = re.subn(pattern, lambda _, text=text: text, page, flags=re.DOTALL)  # type: ignore[misc] # bound now
        assert found == 1, name
    return page
