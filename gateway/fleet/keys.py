"""What a fleet keeps in etcd: the names of its keys, and what they say. Pure.

    PREFIX members/NAME    a gateway that is there; ends with its lease
    PREFIX homes/DISK      the home of a disk; ends with that gateway's lease
    PREFIX records/DISK    who may still write to it (`gateway.fleet.record`); never ends by itself
    PREFIX drains/NAME     a gateway that is to have no disks, whether it is there or not; never ends by itself
    PREFIX moves/NAME      how far that is with it, as it says; ends with its lease
    PREFIX tickets/HASH    an export that was made at run time (`gateway.fleet.tickets`); never ends by itself

A disk is known by a hash of its server's address and its name there, or of its server alone, as among workers
(`gateway.workers.homes`). So all gateways of a fleet must have the same addresses of servers, as written.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

from gateway.fleet.record import HomeRun
from gateway.workers.rendezvous import SCORE_BYTES

DISK_BYTES = 16
"""Of the hash that a disk is known by: among 100,000 disks two are the same once in 10**28 fleets."""


class NotSaid(Exception):
    """What etcd has under a key is not what a gateway writes there; the text says what came."""


@dataclass(frozen=True, slots=True)
class FleetKeys:
    """The keys of a fleet."""

    prefix: str

    @property
    def members(self) -> str:
        """What the keys of gateways begin with."""
        return f"{self.prefix}members/"

    @property
    def homes(self) -> str:
        """What the keys of homes begin with."""
        return f"{self.prefix}homes/"

    @property
    def records(self) -> str:
        """What the keys of records begin with."""
        return f"{self.prefix}records/"

    @property
    def drains(self) -> str:
        """What the keys of gateways that are drained begin with."""
        return f"{self.prefix}drains/"

    @property
    def moves(self) -> str:
        """What the keys begin with that say how far that is."""
        return f"{self.prefix}moves/"

    @property
    def tickets(self) -> str:
        """What the keys of tickets begin with."""
        return f"{self.prefix}tickets/"

    def member(self, name: str) -> str:
        """Give the key of a gateway."""
        return f"{self.members}{name}"

    def home(self, disk: str) -> str:
        """Give the key of a disk's home."""
        return f"{self.homes}{disk}"

    def record(self, disk: str) -> str:
        """Give the key of a disk's record."""
        return f"{self.records}{disk}"


def disk_of(key: bytes) -> str:
    """Give by what a disk is known, of what is hashed for its home."""
    return blake2b(key, digest_size=DISK_BYTES).hexdigest()


def said_of_run(run: HomeRun, **more: str) -> str:
    """Give what stands under the key of a gateway, or of a home."""
    return json.dumps(
        {"gateway": run.gateway, "run": run.run, "address": run.address, **more}, ensure_ascii=True
    )


def run_said(text: str) -> tuple[HomeRun, dict[str, str]]:
    """Read what `said_of_run` gave, and what more there is. Raises `NotSaid`."""
    try:
        said = json.loads(text)
        texts = {str(key): value for key, value in said.items() if isinstance(value, str)}
        return HomeRun(texts.pop("gateway"), texts.pop("run"), texts.pop("address")), texts
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise NotSaid(f"expected what a gateway says of itself, got {text:.80}") from None


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """A gateway is to have no disks."""

    number: str
    """Which drain it is: another one begins anew."""
    seconds: float | None
    """After how long sessions end that cannot go along with their disks, from when the gateway hears of it.
    None: never."""

    def encode(self) -> str:
        """Give it as etcd keeps it."""
        return json.dumps({"v": 1, "number": self.number, "seconds": self.seconds})


def drain_said(text: str) -> DrainAsked:
    """Read what `encode` gave. Raises `NotSaid`."""
    try:
        said = json.loads(text)
        seconds = said["seconds"]
        if said["v"] != 1 or not isinstance(seconds, int | float | None):
            raise ValueError
        return DrainAsked(str(said["number"]), None if seconds is None else float(seconds))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotSaid(f"expected that a gateway is drained, of version 1, got {text:.80}") from None


def best_of(disk: str, gateways: Collection[str]) -> str:
    """Give which of several gateways a disk without a home goes to: the one with the highest score, a hash of
    both, as all compute it alike (`gateway.workers.rendezvous`).
    """

    def score(name: str) -> tuple[bytes, str]:
        key = f"{disk} {name}".encode()
        return blake2b(key, digest_size=SCORE_BYTES).digest(), name

    return max(gateways, key=score)
