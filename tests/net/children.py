"""Processes that tests start, and whether they live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from tests.tools.patience import HANG_SECONDS


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(HANG_SECONDS):
        while not condition():
            await trio.sleep(0.01)


def lives(number: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{number}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(number: int) -> list[int]:
    return [
        int(each) for each in Path(f"/proc/{number}/task/{number}/children").read_text().split()
    ]
