"""What is measured, and what must be reached: a new load is a row here.

The floors and goals are the project's requirements. A floor that is not reached fails the run; a
goal is what we would like. Change one only with the requirement.
"""

from __future__ import annotations

from dataclasses import dataclass

DIRECT = "direct"
GATEWAY = "gateway"
PURE = "pure"
"""The gateway without its compiled pump."""
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

PLAIN = (DIRECT, GATEWAY, PURE, NBDKIT, QEMU_NBD, HAPROXY)
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


@dataclass(frozen=True)
class AtMostPerRequest:
    """No more than `factor` times the processor time per request of `peer`."""

    factor: float
    peer: str

    def __str__(self) -> str:
        return f"<= {self.factor:g} x {self.peer}'s processor time"


Bound = Times | AtMost | AtMostPerRequest


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
    """From the start of the process until a connect succeeds: what processor time it takes."""

    compiled: bool
    """Whether the interpreter finds the gateway's modules compiled (.pyc); else it compiles each."""


@dataclass(frozen=True)
class Idle:
    """Resident memory while so many sessions have read once and then sit still."""

    sessions: int


@dataclass(frozen=True)
class AtRest:
    """The share of a processor that is used while so many sessions sit still, or one asks once a second."""

    sessions: int
    asks: bool = False


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


Load = Fio | Pump | Copy | Start | Idle | AtRest | NeverReads | BesideFlood


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
    pure: tuple[Bound, ...] = ()
    """Floors of the gateway without its pump."""


def _beside(haproxy: float, nbdkit: float) -> tuple[Bound, ...]:
    return Times(haproxy, HAPROXY), Times(nbdkit, NBDKIT)


_MOST_OF_DIRECT = (Times(0.8, DIRECT),)
_LARGE_OF_DIRECT = (Times(0.7, DIRECT),)
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
        floors=_beside(1.0, 2.0),
        goals=_beside(1.2, 2.3),
        pure=_beside(0.95, 1.9),
    ),
    Row(
        "plain 4k write, depth 32",
        "k/s",
        Fio("write", 4 * KIB, 32),
        floors=_beside(1.05, 1.5),
        goals=_beside(1.2, 2.3),
        pure=_beside(0.95, 1.2),
    ),
    *(
        Row(
            f"plain 4k {verb}, depth 1",
            "k/s",
            Fio(verb, 4 * KIB, 1),
            floors=_beside(1.5, 1.6),
            goals=_MOST_OF_DIRECT,
            pure=_beside(1.5, 1.6),
        )
        for verb in ("read", "write")
    ),
    Row(
        "plain 64k read, depth 16",
        "k/s",
        Fio("read", 64 * KIB, 16),
        floors=_beside(0.75, 0.85),
        goals=_beside(1.0, 1.1),
        pure=_beside(0.7, 0.75),
    ),
    Row(
        "plain 64k write, depth 16",
        "k/s",
        Fio("write", 64 * KIB, 16),
        floors=_beside(0.85, 1.0),
        goals=_beside(1.0, 1.2),
        pure=_beside(0.6, 0.75),
    ),
    *(
        Row(
            f"plain 1M {verb}, depth 8",
            "MB/s",
            Fio(verb, MIB, 8),
            floors=_beside(1.05, 1.0),
            goals=_LARGE_OF_DIRECT,
            pure=_beside(0.95, 0.85),
        )
        for verb in ("read", "write")
    ),
    Row(
        "16 connections x depth 1, 4k read",
        "k/s",
        Fio("read", 4 * KIB, 1, connections=16),
        # nbdkit swings threefold here, from run to run.
        floors=(Times(0.95, HAPROXY), AtMostPerRequest(1.15, HAPROXY)),
        goals=(Times(1.1, HAPROXY), AtMostPerRequest(1.0, HAPROXY)),
        pure=(Times(0.58, HAPROXY),),
    ),
    Row(
        "4 connections x depth 32, 4k read",
        "k/s",
        Fio("read", 4 * KIB, 32, connections=4),
        floors=_beside(0.9, 2.3),
        goals=_beside(1.0, 2.8),
        pure=_beside(0.75, 1.9),
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
            goals=(Times(0.95, FAST),),
            peers=(FAST, judged),
            judged=judged,
        )
        for judged in (EXTENDED_CLIENT, SIMPLE_UPSTREAM)
        for size, block_bytes, depth, unit in (("4k", 4 * KIB, 32, "k/s"), ("1M", MIB, 8, "MB/s"))
    ),
    *(
        Row(
            f"TLS {size} {verb}, depth {depth}",
            unit,
            Fio(verb, block_bytes, depth),
            floors=(Times(floor, NBDKIT_TLS),),
            goals=(Times(goal, NBDKIT_TLS),),
            peers=(DIRECT_TLS, GATEWAY_TLS, NBDKIT_TLS, QEMU_NBD_TLS),
            judged=GATEWAY_TLS,
        )
        for size, verb, block_bytes, depth, unit, floor, goal in (
            ("4k", "read", 4 * KIB, 32, "k/s", 1.7, 2.2),
            ("64k", "read", 64 * KIB, 16, "k/s", 1.1, 1.3),
            ("1M", "read", MIB, 8, "MB/s", 1.0, 1.2),
            ("1M", "write", MIB, 8, "MB/s", 1.0, 1.2),
            ("4k", "read", 4 * KIB, 1, "k/s", 1.0, 1.3),
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
    *(
        Row(
            f"nbdcopy 1 GiB {way} it, 4 connections",
            "MB/s",
            Copy(verb, connections=4),
            floors=_beside(1.0, 0.95),
            goals=_beside(1.1, 1.1),
            pure=_beside(0.95, 0.85),
        )
        for way, verb in (("from", "read"), ("to", "write"))
    ),
    *(
        Row(
            f"start to listening, {how}",
            "s",
            Start(compiled),
            floors=(AtMost(floor, "s"),),
            goals=(AtMost(goal, "s"),),
            peers=_ALONE,
        )
        for how, compiled, floor, goal in (
            ("with .pyc", True, 0.4, 0.25),
            ("without .pyc", False, 0.6, 0.4),
        )
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
        "1,000 idle sessions, processor",
        "%",
        AtRest(1000),
        floors=(AtMost(1, "%"),),
        goals=(AtMost(0.2, "%"),),
        peers=_ALONE,
    ),
    Row(
        "one request a second, processor",
        "%",
        AtRest(1, asks=True),
        floors=(AtMost(1, "%"),),
        goals=(AtMost(0.2, "%"),),
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
