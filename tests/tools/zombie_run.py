"""`python -m tests.tools.zombie_run`: a home that was stopped where no lease can help, again and again.

    --at look     between its look whether it still may send and its sending (`tests/tools/stopping`)
    --at buffer   with 1 MiB of WRITEs sent, of which the server reads nothing

Meanwhile its lease ends, another gateway becomes the home and writes; then the zombie goes on, or the server
reads. A write of its that comes after the first of the new home is counted, as the server sees it
(`tests.tools.fleet_world`). With the fence there must be none: exit status 1 if there is one. With `--no-fence`
nobody waits (late-write-seconds = 0), and they are printed: none would mean that the run proves nothing, so the
exit status is 1 then."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from gateway.wire.constants import Cmd
from tests.embedded.peers import Client
from tests.fleet.running import OneGateway, is_stopped
from tests.tools.fleet_world import LOOK_AGAIN_SECONDS, FleetWorld, fleet_world, goes_on

STOPPING = Path(__file__).parent / "stopping"

LEASE_SECONDS = 2
"""The shortest that there is: each time one has to end."""

BUFFERED_BYTES = 1 << 20

WRITE_BYTES = 4096
"""Of each of the WRITEs that fill the buffer: many, so that some are whole in the server's part of it."""

BLOCKS = 4096
"""2 MiB."""

TIME_SECONDS = 120.0
"""One time that is not over by then hangs."""

MOST_TRIES = 3
"""So many times as many as are wanted: on a busy machine a lease of two seconds ends now and then by itself."""


@dataclass
class ZombieReport:
    """How it went."""

    times: int = 0
    """How often the home was stopped where it was to be, and another one has written."""
    written: int = 0
    """In so many of them it has written after that."""
    writes: int = 0
    in_vain: int = 0
    problems: list[str] = field(default_factory=list)


class NotTheHome(Exception):
    """The gateway that was the home has lost its lease before it was stopped, and another one was."""


class Zombie:
    """One disk, two gateways, and which of them is the home."""

    def __init__(self, world: FleetWorld, where: str, report: ZombieReport) -> None:
        self._world, self._where, self._report = world, where, report
        self._armed = Path(os.environ["NBD_STOP_AFTER_LOOK"])

    async def once(self) -> bool:
        """Stop the home, and have it go on; say whether it was where it was to be."""
        world = self._world
        first = await self._session(world.gateways["a"])
        assert await first.error(Cmd.WRITE, data=b"a" * 512) == 0
        await first.send(Cmd.DISC)
        await first.stream.aclose()
        home = world.gateways[(await world.homes())["d0"]]
        [other] = [each for each in world.gateways.values() if each is not home]
        client = await self._session(home)
        assert await client.error(Cmd.WRITE, data=b"b" * 512) == 0
        before = len(world.log.two_writers)
        try:
            await (self._stop_after_look if self._where == "look" else self._fill)(home, client)
            new = await self._session(other)
            if await new.error(Cmd.WRITE, data=b"n" * 512):
                return False
            well = (await world.homes()).get("d0") == other.name
            await new.stream.aclose()
        finally:
            self._armed.unlink(missing_ok=True)
            if self._where == "look":
                for each in (home, other):
                    goes_on(each)
                await self._has_noticed(home)
            else:
                world.server.unblock(home.name)
                await self._is_read(home)
                goes_on(home)
                await self._has_noticed(home)
            await trio.aclose_forcefully(client.stream)
        late = len(world.log.two_writers) - before
        self._report.written += bool(late)
        self._report.writes += late
        return well

    async def _session(self, gateway: OneGateway) -> Client:
        """Give a session, however often there is none to be had."""
        while True:
            with suppress(EOFError, OSError, trio.BrokenResourceError, AssertionError):
                return await gateway.session_again("d0")
            await trio.sleep(LOOK_AGAIN_SECONDS)

    async def _stop_after_look(self, home: OneGateway, client: Client) -> None:
        self._armed.touch()
        await client.send(Cmd.WRITE, data=b"z" * 512)
        while not is_stopped(home):
            if any(map(is_stopped, self._world.gateways.values())):
                raise NotTheHome
            await trio.sleep(LOOK_AGAIN_SECONDS)

    async def _fill(self, home: OneGateway, client: Client) -> None:
        self._world.server.block(home.name)
        # As much as the gateway takes: it reads no more when it can send no more.
        with trio.move_on_after(LEASE_SECONDS / 4):
            for at in range(0, BUFFERED_BYTES, WRITE_BYTES):
                await client.send(Cmd.WRITE, at, data=b"z" * WRITE_BYTES)
        await trio.sleep(LEASE_SECONDS / 8)  # it sends what it has taken
        home.signal(signal.SIGSTOP)

    async def _is_read(self, home: OneGateway) -> None:
        """Wait until the server has read all that was there: nothing of it comes any more."""
        disk, seen = self._world.disks["d0"], -1
        while disk.writes != seen:
            seen = disk.writes
            await trio.sleep(10 * LOOK_AGAIN_SECONDS)

    async def _has_noticed(self, home: OneGateway) -> None:
        """Wait until it knows that its time as the home is over, and has none of its connections any more."""
        while not await self._world.has_lease(home.name) or self._world.server.connections_of(
            home.name
        ):
            await trio.sleep(LOOK_AGAIN_SECONDS)


async def run(times: int, where: str, fence: bool, at: Path) -> ZombieReport:
    """Do it so often."""
    report = ZombieReport()
    os.environ["NBD_STOP_AFTER_LOOK"] = str(at / "armed")
    os.environ["PYTHONPATH"] = f"{STOPPING}:{os.environ.get('PYTHONPATH', '')}"
    world_of = fleet_world(
        at, names="ab", blocks=BLOCKS, lease=LEASE_SECONDS, fence=fence, tcp=True, late=0
    )
    async with world_of as world:
        zombie = Zombie(world, where, report)
        while report.times < times and report.in_vain < MOST_TRIES * times:
            well = False
            with trio.move_on_after(TIME_SECONDS) as limit:
                with suppress(EOFError, trio.BrokenResourceError, NotTheHome):
                    well = await zombie.once()
            if limit.cancelled_caught:
                report.problems.append(f"one time was not over in {TIME_SECONDS:g} s")
                break
            report.times += well
            report.in_vain += not well
            if well and report.times % 10 == 0:
                print(f"{report.times} times, {report.written} wrote", file=sys.stderr)
        if fence:
            report.problems += world.log.two_writers
        elif not report.written:
            report.problems.append("no zombie has written, so that this run proves nothing")
    return report


def main() -> int:
    """Give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.zombie_run")
    parser.add_argument("--at", choices=("look", "buffer"), required=True)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--no-fence", action="store_true")
    parser.add_argument("--keep", type=Path, help="a directory for the logs, which is left there")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        at = said.keep or Path(name)
        at.mkdir(parents=True, exist_ok=True)
        report = trio.run(run, said.times, said.at, not said.no_fence, at)
    how = "without a fence" if said.no_fence else "with a fence"
    print(
        f"stopped {report.times} times at the {said.at}, {how}: in {report.written} of them it has written"
        f" after the first write of the next home ({report.writes} writes); {report.in_vain} times in vain"
    )
    print("\n".join(f"  WRONG: {problem}" for problem in report.problems[:5]))
    return 1 if report.problems or report.times < said.times else 0


if __name__ == "__main__":
    sys.exit(main())
