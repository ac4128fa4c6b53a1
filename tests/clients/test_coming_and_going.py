"""Clients that have come and gone leave nothing behind that others' memory lies around."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.app.houses import House, house, until
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

CONFIG = """
listen = [ { uri = "nbd+unix:///?socket=DIR/g.sock" } ]
[upstream.main]
uri = "memory:1M"
"""

BEFORE, CLIENTS = 20, 100

SAME = 60
"""Blocks of memory, more or less: those in which it is counted, and what lives for a moment. (A new string for
each name of an attribute that is looked up, which the interpreter's cache keeps, leaves a thousand.)"""

LOOKS, LOOK_SECONDS = 50, 0.1

LATER_SECONDS = 3600
"""By then no time runs that would have ended any of them: Trio keeps those, up to a thousand."""


async def come_and_go(there: House, clients: int, clock: trio.testing.MockClock) -> int:
    """Have clients come all at once, and go; give how many blocks of memory are in use then."""
    for client in [await there.session() for _ in range(clients)]:
        await client.stream.aclose()
    await until(lambda: not there.service.running)
    clock.jump(LATER_SECONDS)
    await trio.testing.wait_all_tasks_blocked()
    return in_use(there)


def in_use(there: House) -> int:
    there.streams.clear()
    there.lines.entries.clear()
    gc.collect()
    return sys.getallocatedblocks()


async def main(clock: trio.testing.MockClock) -> None:
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        async with house(Path(name), CONFIG) as there:
            await come_and_go(there, BEFORE, clock)
            before = await come_and_go(there, BEFORE, clock)
            more = await come_and_go(there, CLIENTS, clock) - before
            for _look in range(LOOKS):  # on a busy machine threads may be at the last of them still
                if more < SAME:
                    break
                await trio.sleep(LOOK_SECONDS)
                more = in_use(there) - before
            print(more)


def test_who_has_gone_leaves_no_memory_in_use() -> None:
    """In a process of its own, for what others have done there would hide it."""
    said = subprocess.run(
        [sys.executable, "-m", __name__], stdout=-1, timeout=HANG_SECONDS, check=True
    ).stdout
    assert int(said) < SAME


if __name__ == "__main__":
    its = trio.testing.MockClock(rate=1)
    trio.run(main, its, clock=its)
