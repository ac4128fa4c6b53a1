"""What is measured, and what must be reached: a new load is a row here.

The floors and goals are the project's requirements. A floor that is not reached fails the run; a
goal is what we would like. Change one only with the requirement.
"""

from __future__ import annotations

from dataclasses import dataclass

DIRECT = "direct"
GATEWAY = "gateway"
NBDKIT = "nbdkit"
QEMU_NBD = "qemu-nbd"
HAPROXY = "haproxy"

FAST = "gateway+FAST"
"""A structured client, a structured upstream: nothing to do but cookies."""
EXTENDED_CLIENT = "gateway+extended client"
"""An extended client, a structured upstream: everyday traffic of modern clients before nbdkit."""
SIMPLE_UPSTREAM = "gateway+simple upstream"
"""A structured client, an upstream without structured replies."""

POLICIES = "gateway+policies"
"""Ten policies that restrict, all of which are compiled into the command table."""

ONE_CONNECTION = "gateway+one connection"
FAN_OUT = "gateway+fan-out of 4"
"""To an upstream that serves one request at a time on each connection, and takes its time for it."""

TLS = "+tls"
DIRECT_TLS, GATEWAY_TLS, NBDKIT_TLS, QEMU_NBD_TLS = (
    name + TLS for name in (DIRECT, GATEWAY, NBDKIT, QEMU_NBD)
)
"""TLS to the client; to the upstream in the clear (direct: a server that has TLS itself)."""

PLAIN = (DIRECT, GATEWAY, NBDKIT, QEMU_NBD, HAPROXY)
"""The contestants of a plain row, in the order of the table's columns."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True)
class Times:
    """At least `factor` times as fast as `peer`, in the same run."""

    factor: float
    peer: str

    def __str__(self) -> str:
        return f"{self.factor:g} x {self.peer}"


@dataclass(frozen=True)
class AtMost:
    """No more than `amount`, in the row's own unit: for seconds and memory, where less is better."""

    amount: float
    unit: str

    def __str__(self) -> str:
        return f"<= {self.amount:g} {self.unit}"


Bound = Times | AtMost


@dataclass(frozen=True)
class Fio:
    """fio's nbd engine: requests of one size at random offsets."""

    verb: str  # "read" or "write"
    block_bytes: int
    depth: int
    connections: int = 1
    reach_bytes: int | None = None
    """How much of the export from its beginning on; all of it if None."""


@dataclass(frozen=True)
class Pump:
    """READs at random offsets from a client of ours, for framings that no tool here speaks."""

    block_bytes: int
    depth: int


@dataclass(frozen=True)
class Copy:
    """nbdcopy of the whole gibibyte, by the wall clock."""

    verb: str  # "read": from the contestant to null:; "write": from the upstream to the contestant
    connections: int


@dataclass(frozen=True)
class Start:
    """From the start of the process until a connect succeeds."""


@dataclass(frozen=True)
class Idle:
    """Resident memory while so many sessions have read once and then sit still."""

    sessions: int


@dataclass(frozen=True)
class NeverReads:
    """How much memory grows when one client asks for much more than it takes."""

    requests: int
    request_bytes: int


@dataclass(frozen=True)
class BesideFlood:
    """How many times as long a READ of 4 KiB takes at depth 1, beside four who ask as fast as they can."""

    kind: str
    """A key of `FLOODS`."""


Load = Fio | Pump | Copy | Start | Idle | NeverReads | BesideFlood


@dataclass(frozen=True)
class Row:
    """One load, who is measured under it, and what the judged one must reach."""

    name: str
    unit: str
    load: Load
    floors: tuple[Bound, ...]
    goals: tuple[Bound, ...]
    peers: tuple[str, ...] = PLAIN
    judged: str = GATEWAY


def _times_nbdkit(factor: float) -> tuple[Bound, ...]:
    return (Times(factor, NBDKIT),)


_MANY_SMALL = (Times(2.0, NBDKIT), Times(1.2, HAPROXY))
_FEW_LARGE = (Times(1.0, NBDKIT), Times(1.05, HAPROXY))
_ALONE = (GATEWAY,)

NEVER_READS_MIB = 8
"""How much a client that never reads may cost. A session has two lanes of at most 1 MiB, its link as
much again, and the in-flight table of 2,000 requests takes less than one; twice that leaves room for
the allocator. A gateway that reads on regardless would hold 2,000."""

ROWS = (
    Row(
        "plain 4k read, depth 32",
        "k/s",
        Fio("read", 4 * KIB, 32),
        floors=_MANY_SMALL,
        goals=(Times(0.9, DIRECT),),
    ),
    Row(
        "plain 4k write, depth 32",
        "k/s",
        Fio("write", 4 * KIB, 32),
        floors=_MANY_SMALL,
        goals=(Times(0.9, DIRECT),),
    ),
    Row(
        "plain 4k read, depth 1",
        "k/s",
        Fio("read", 4 * KIB, 1),
        floors=_times_nbdkit(1.0),
        goals=_times_nbdkit(1.2),
    ),
    Row(
        "plain 4k write, depth 1",
        "k/s",
        Fio("write", 4 * KIB, 1),
        floors=_times_nbdkit(1.0),
        goals=_times_nbdkit(1.2),
    ),
    Row(
        "plain 64k read, depth 16",
        "k/s",
        Fio("read", 64 * KIB, 16),
        floors=_times_nbdkit(1.1),
        goals=_times_nbdkit(1.3),
    ),
    Row(
        "plain 1M read, depth 8",
        "MB/s",
        Fio("read", MIB, 8),
        floors=_FEW_LARGE,
        goals=(Times(0.7, DIRECT),),
    ),
    Row(
        "plain 1M write, depth 8",
        "MB/s",
        Fio("write", MIB, 8),
        floors=_FEW_LARGE,
        goals=(Times(0.7, DIRECT),),
    ),
    Row(
        "16 connections x depth 1, 4k read",
        "k/s",
        Fio("read", 4 * KIB, 1, connections=16),
        floors=_times_nbdkit(1.0),
        goals=_times_nbdkit(1.3),
    ),
    Row(
        "4 connections x depth 32, 4k read",
        "k/s",
        Fio("read", 4 * KIB, 32, connections=4),
        floors=_times_nbdkit(2.0),
        goals=_times_nbdkit(2.5),
    ),
    *(
        Row(
            f"ten policies 4k {verb}, depth 32",
            "k/s",
            Fio(verb, 4 * KIB, 32, reach_bytes=GIB - 2 * MIB),
            floors=(Times(0.95, GATEWAY),),
            goals=(Times(0.98, GATEWAY),),
            peers=(GATEWAY, POLICIES),
            judged=POLICIES,
        )
        for verb in ("read", "write")
    ),
    *(
        Row(
            f"reframed: {judged.partition('+')[2]}, {size} read, depth {depth}",
            unit,
            Pump(block_bytes, depth),
            floors=(Times(0.8, FAST),),
            goals=(Times(0.9, FAST),),
            peers=(FAST, judged),
            judged=judged,
        )
        for judged in (EXTENDED_CLIENT, SIMPLE_UPSTREAM)
        for size, block_bytes, depth, unit in (("4k", 4 * KIB, 32, "k/s"), ("1M", MIB, 8, "MB/s"))
    ),
    *(
        Row(
            f"TLS {size} read, depth {depth}",
            unit,
            Fio("read", block_bytes, depth),
            floors=(Times(floor, NBDKIT_TLS),),
            goals=(Times(goal, NBDKIT_TLS),),
            peers=(DIRECT_TLS, GATEWAY_TLS, NBDKIT_TLS, QEMU_NBD_TLS),
            judged=GATEWAY_TLS,
        )
        for size, block_bytes, depth, unit, floor, goal in (
            ("4k", 4 * KIB, 32, "k/s", 1.5, 2.0),
            ("64k", 64 * KIB, 16, "k/s", 1.1, 1.3),
            ("1M", MIB, 8, "MB/s", 1.0, 1.2),
            ("4k", 4 * KIB, 1, "k/s", 0.9, 1.2),
        )
    ),
    Row(
        "fan-out of 4 to a slow upstream, 4k read, depth 32",
        "k/s",
        Fio("read", 4 * KIB, 32),
        floors=(Times(3.5, ONE_CONNECTION),),
        goals=(Times(3.9, ONE_CONNECTION),),
        peers=(ONE_CONNECTION, FAN_OUT),
        judged=FAN_OUT,
    ),
    Row(
        "nbdcopy 1 GiB from it, 4 connections",
        "MB/s",
        Copy("read", connections=4),
        floors=_times_nbdkit(1.0),
        goals=_times_nbdkit(1.2),
    ),
    Row(
        "nbdcopy 1 GiB to it, 4 connections",
        "MB/s",
        Copy("write", connections=4),
        floors=_times_nbdkit(1.0),
        goals=_times_nbdkit(1.2),
    ),
    Row(
        "start to listening",
        "s",
        Start(),
        floors=(AtMost(0.6, "s"),),
        goals=(AtMost(0.3, "s"),),
        peers=_ALONE,
    ),
    Row(
        "1,000 idle sessions, resident",
        "MiB",
        Idle(1000),
        floors=(AtMost(120, "MiB"),),
        goals=(AtMost(80, "MiB"),),
        peers=_ALONE,
    ),
    Row(
        "client that never reads, growth",
        "MiB",
        NeverReads(2000, MIB),
        floors=(AtMost(NEVER_READS_MIB, "MiB"),),
        goals=(AtMost(NEVER_READS_MIB, "MiB"),),
        peers=_ALONE,
    ),
    *(
        Row(
            f"READ beside a flood: {kind}",
            "x alone",
            BesideFlood(kind),
            floors=(AtMost(10, "x alone"),),
            goals=(AtMost(3, "x alone"),),
        )
        for kind in ("1-byte READs", "unknown commands", "BLOCK_STATUS", "opening and leaving")
    ),
)
