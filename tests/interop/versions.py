"""Which version of a real program is here. What is different in Debian 13's is expected by version, and no test
is left out for it.
"""

from __future__ import annotations

import re
from functools import cache

from .processes import run


@cache
def version_of(program: str) -> tuple[int, int]:
    """Give the first two numbers of what a program says it is."""
    said = run(program, "--version")
    found = re.search(r"\b(\d+)\.(\d+)\b", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def nbd_server_has_df() -> bool:
    """Say whether nbd-server offers DF, which it has done since 3.25 and which no READ of its can have
    (the quirk `nbd-server-df`).
    """
    return version_of("nbd-server") >= (3, 25)
