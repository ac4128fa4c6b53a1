"""Whoever of the two processes of an upgrade is killed, at whichever step: somebody serves, and no client is
told anything that is not so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from .clients import SCRIPTS, SYSTEM_PYTHON
from .gateways import MODE, disks
from .processes import Process, wait_until
from .servers import Servers
from .upgraded import Upgraded, lives

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="only the gateway upgrades")

MORTAL = Path(__file__).parents[1] / "upgrade" / "mortal"

MIB = 1 << 20


@dataclass(frozen=True)
class Death:
    """Who dies, and when (`tests.upgrade.mortal`)."""

    point: str
    deadline: float | None = None
    """Of the upgrade; None: sessions stay where they are."""
    comes: bool = False
    """A client comes when both serve, who is handed over."""

    @property
    def newer(self) -> bool:
        """It is the newer process."""
        return self.point.startswith("newer")


DEATHS = (
    Death("newer hello before"),
    Death("newer hello after"),
    Death("newer ready before"),
    Death("newer ready after"),
    Death("newer ACCEPT before"),
    Death("newer serving before"),
    Death("newer serving after"),
    Death("newer client before", comes=True),
    Death("newer client after", comes=True),
    Death("newer HAVE_ALL before", 0),
    Death("newer thanks before", 0),
    Death("older state after"),
    Death("older STOP_ACCEPTING before"),
    Death("older go before"),
    Death("older go after"),
    Death("older SAY_DONE before"),
    Death("older taken before", comes=True),
    Death("older taken after", comes=True),
    Death("older FINISH before", 0),
    Death("older bye before", 0),
    Death("older bye after", 0),
    Death("older DRAIN before", 0),
)
"""One after the other, from step 1 to step 6 of docs/upgrade.md, of each of both."""

FEW = (
    *("newer ready before", "newer serving before", "newer client after", "newer thanks before"),
    *("older state after", "older go after", "older bye before"),
)
"""Those that `make test` tries: one of each step."""


class Mortal(Upgraded):
    """A gateway whose processes die when they are told to."""

    def __init__(self, workdir: Path, text: str) -> None:
        self.dies_at = workdir / "dies-at"
        super().__init__(workdir, text)

    def started(self) -> Process:
        """Start the first."""
        return Process(
            *("env", f"DIES_AT={self.dies_at}", f"PYTHONPATH={MORTAL}"),
            *(sys.executable, "-m", "gateway", "serve", "--config", self.config),
            *("--pidfile", self.pidfile),
        )


@pytest.fixture
def mortal(servers: Servers, workdir: Path) -> Iterator[Mortal]:
    upstream = servers.nbdkit("memory", f"{16 * MIB}")
    gateway = Mortal(workdir, disks(f'uri = "{upstream.uri}"'))
    yield gateway
    gateway.put_away()


class Verifying:
    """A client that writes, reads back and compares, and connects again when it is disconnected."""

    def __init__(self, uri: str, number: int) -> None:
        at = number * 64 * 4096
        self.process = Process(SYSTEM_PYTHON, SCRIPTS / "verify.py", uri, str(at), "64")
        wait_until(lambda: "begun\n" in self.process.output, "it has begun")

    @property
    def reconnects(self) -> int:
        """How often it has connected again."""
        return self.process.output.count("again")

    def end(self) -> None:
        """End it: it has seen nothing bad, and somebody has listened whenever it came. (Who is killed may have
        been about to answer it.)
        """
        self.process.stop()
        seen = json.loads(self.process.output.splitlines()[-1])
        nobody = [
            each for each in seen["refused"] if "onnection refused" in each or "No such" in each
        ]
        assert (seen["bad"], nobody) == ([], []), seen


def test_whoever_dies_the_other_one_serves(mortal: Mortal) -> None:
    one_after_the_other(mortal, [death for death in DEATHS if death.point in FEW])


@pytest.mark.exhaustive
def test_whoever_dies_at_whichever_step_the_other_one_serves(mortal: Mortal) -> None:
    one_after_the_other(mortal, DEATHS)


def one_after_the_other(mortal: Mortal, deaths: Sequence[Death]) -> None:
    stays = Verifying(mortal.uri(), 0)
    for number, death in enumerate(deaths, 1):
        before, reconnects = mortal.pid, stays.reconnects
        mortal.dies_at.write_text(death.point)
        mortal.upgrade(*([] if death.deadline is None else ["--deadline", str(death.deadline)]))
        comes = Verifying(mortal.uri(), number) if death.comes else None
        wait_until(lambda: not mortal.dies_at.exists(), f"it dies: {death}")
        serves = before if death.newer else 0

        def found() -> bool:
            return mortal.pid == serves if serves else mortal.pid != before  # noqa: B023

        wait_until(found, f"the other one serves: {death}")
        mortal.all.append(mortal.pid)
        assert lives(mortal.pid)
        assert mortal.asked().status == 0
        if comes is not None:
            comes.end()
        if death.newer and death.deadline is None:
            assert stays.reconnects == reconnects, death
        else:
            wait_until(lambda: stays.reconnects > reconnects, f"it is back: {death}")  # noqa: B023
        if not death.newer:
            mortal.ended(before)
    stays.end()
    mortal.end()
