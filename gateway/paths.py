"""What is said of a path that was not meant as it stands."""

from __future__ import annotations

import os
from pathlib import Path


def unexpanded(path: Path | str) -> str:
    """Give what is to be added to an error about a path: that nobody expands the ~ at its beginning. Empty
    where there is none, or where something is called so.
    """
    first = Path(path).parts[:1]
    if not first or not first[0].startswith("~") or os.path.lexists(first[0]):
        return ""
    return "; ~ is not expanded here: write the path in full"
