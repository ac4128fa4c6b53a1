"""Long lists in the data of an answer, as JSON that is made piece by piece."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class InPieces(list[Any]):
    """A long list of an answer's data. Each piece becomes JSON when it is added, so whoever adds many lets the
    others have their turn in between; the whole at once takes the hub some milliseconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        """Each piece as JSON."""

    def add(self, piece: Any) -> int:
        """Add one; give how long its text is."""
        self.append(piece)
        self.texts.append(json.dumps(piece))
        return len(self.texts[-1])


def text_of(data: Mapping[str, Any]) -> str:
    """Give data as JSON."""
    said = (
        f"{json.dumps(name)}: "
        + (f"[{', '.join(value.texts)}]" if isinstance(value, InPieces) else json.dumps(value))
        for name, value in data.items()
    )
    return f"{{{', '.join(said)}}}"
