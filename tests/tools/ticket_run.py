"""`python -m tests.tools.ticket_run`: how soon a ticket that is made at one gateway of a fleet serves nbdcopy
at another one.

So many tickets are made at one of three gateways, in turn, and nbdcopy copies each by way of the next gateway,
at once and as often as it takes. The time is from the answer to `export-add` until nbdcopy has ended. It is
printed, with the longest; in the end all gateways are killed with -9, and the last ticket has to be there when
they are started again."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.tools.fleet_world import LOOK_AGAIN_SECONDS, fleet_world

PROMISED_SECONDS = 1.0

TICKETS = "[tickets]\netcd = true\n"


async def run(times: int, at: Path) -> list[float]:
    """Give the times, in seconds."""
    found: list[float] = []
    async with fleet_world(at, more=TICKETS) as world:
        gateways = list(world.gateways.values())

        async def copied(name: str, export: str) -> None:
            uri = f"nbd+unix:///{export}?socket={at}/{name}.sock"
            command = ["nbdcopy", uri, "null:"]
            while (await trio.run_process(command, check=False, capture_stderr=True)).returncode:
                await trio.sleep(LOOK_AGAIN_SECONDS)

        for number in range(times):
            made, used = gateways[number % 3], gateways[(number + 1) % 3]
            said = {"export": f"t{number}", "upstream": "u", "upstream-name": "d0", "for": 3600}
            answer = await made.ask("export-add", **said)
            assert answer.ok, answer.problems
            began = time.monotonic()
            await copied(used.name, f"t{number}")
            found.append(time.monotonic() - began)
        for each in gateways:
            each.kill()
        for each in gateways:
            world.start(each.name)
        for each in gateways:
            await each.serves()
            await copied(each.name, f"t{times - 1}")
    return found


def main() -> int:
    """Give the exit status: 1 if it has taken longer than is promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.ticket_run")
    parser.add_argument("--times", type=int, default=30)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        found = sorted(trio.run(run, said.times, Path(name)))
    print(
        f"{len(found)} tickets: half of them have served within {found[len(found) // 2]:.2f} s of their making,"
        f" the last within {found[-1]:.2f} s; promised is {PROMISED_SECONDS:g} s"
    )
    return 1 if found[-1] > PROMISED_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
