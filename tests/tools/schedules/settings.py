"""What a schedule's gateway and server are like: drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from gateway.embedded.personality import Personality, lacking
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes
from gateway.wire.limits import MIB
from tests.tools.schedules.geometry import BLOCKS, BORDER_BLOCK
from tests.tools.stamps import BLOCK_BYTES

LATE_SECONDS = 30
"""`late-write-seconds` of a gateway that says nothing else."""

FLEET_SECONDS = 300
"""So long sessions live on without their home, in a fleet: several may die before one has begun to serve."""

NOTHING = Flag(0)

CONNECTIONS = ("per-client", "per-client", "per-client", "4", "shared", "shared:4")
"""The default comes first, and most often."""

POLICIES = (
    '{ use = "delay", flush = 0.2 }',
    '{ use = "delay", write = 0.05, flush = 0.1 }',
    '{ use = "fua", how = "emulate" }',
    '{ use = "zero", how = "emulate" }',
    '{ use = "fua", how = "emulate" }, { use = "delay", flush = 0.2 }',
)

CONFIG = """
[[listen]]
uri = "{listen}"
[upstream.main]
uri = "{main}"
{upstream}
[upstream.other]
uri = "{other}"
{upstream}
[[export]]
name = "x"
upstream = "main"
upstream-name = ""
policies = [{policies}]
[[export]]
name = "y"
upstream = "{second}"
upstream-name = ""
"""


@dataclass(frozen=True)
class Asked:
    """A command, before it is sent."""

    kind: str
    """"write", "fua", "read", "zero", "trim" or "flush"."""
    start: int = 0
    count: int = 0

    @property
    def end(self) -> int:
        """The block that comes after it."""
        return self.start + self.count

    def __str__(self) -> str:
        return self.kind if self.kind == "flush" else f"{self.kind} {self.start}+{self.count}"


@dataclass(frozen=True)
class Settings:
    """One of many."""

    connections: str = "per-client"
    unflushed: str = "sticky"
    late_write_seconds: int = 0
    multi_conn: bool = True
    minimum_block: int = 1
    policies: str = ""
    """Of the export x."""
    lacks: Flag = NOTHING
    alias: str = ""
    """How the export y comes to be the same disk as x: "name", by the same upstream; "upstream", by another one
    that has the same address; "switch", by another server, to which x is switched before y has clients."""
    structured: bool = False
    held: float = 0.5
    """How many of the commands wait in the server until it is said what becomes of them."""
    fails: bool = False
    """FLUSHes fail now and then."""
    older: bool = False
    """The server may come back as an older snapshot of itself."""
    fleet: bool = False
    """Clients come to one gateway, and another one is the home of the disk."""

    @property
    def scope_all(self) -> bool:
        """What one session has written concerns all."""
        return self.multi_conn or self.connections.startswith("shared")

    @property
    def strict(self) -> bool:
        """Nobody else may have written what a session finds changed after a reconnect."""
        return not self.multi_conn

    @property
    def lossless(self) -> bool:
        """No client may notice anything."""
        return self.unflushed in ("replay", "assume-durable")

    @property
    def loses(self) -> bool:
        """The server may lose what it has not made stable."""
        return self.unflushed != "assume-durable"

    @property
    def possible(self) -> bool:
        """There is such a gateway, and it is one that this is about."""
        shared = self.connections.startswith("shared")
        return (
            (shared or self.unflushed not in ("verify", "replay"))
            and not (self.lossless and (self.fails or self.older))
            and not (self.fleet and not self._may_be_in_a_fleet)
            and not (
                # What is written of less than a block may bring back what was read beside it before.
                self.older and self.minimum_block > 1
            )
        )

    @property
    def _may_be_in_a_fleet(self) -> bool:
        """What a fleet does with it the oracle knows. With CAN_MULTI_CONN it tells sessions of a home's death
        whose disk has lost nothing, for it cannot know (`gateway.sessions.led`).
        """
        plain = self.connections == "per-client" and not self.multi_conn
        return plain and not (self.policies or self.alias or self.fails or self.older)

    def hooked(self, export: str) -> bool:
        """Say whether an export's commands may wait in a policy, or be done in several steps by one."""
        return bool(self.policies) and export == "x"

    def in_steps(self, asked: Asked) -> bool:
        """Say whether a write may be done in several steps, whatever the policies."""
        grain = self.minimum_block // BLOCK_BYTES
        crosses = asked.start < BORDER_BLOCK < asked.end
        return (
            (self.connections.endswith("4") and crosses)
            or (asked.kind == "zero" and bool(self.lacks & Flag.SEND_WRITE_ZEROES) and crosses)
            or (grain > 1 and bool(asked.start % grain or asked.end % grain))
            or (asked.kind == "fua" and bool(self.lacks & Flag.SEND_FUA))
            or (asked.count == BLOCKS)
        )

    def personality(self) -> Personality:
        """Give how the server behaves."""
        missing = self.lacks | (NOTHING if self.multi_conn else Flag.CAN_MULTI_CONN)
        sizes = BlockSizes(self.minimum_block, 4096, 32 * MIB)
        made = Personality("plain", block_sizes=sizes, raw_errors=True)
        return replace(made, flags=lacking(missing)) if missing else made

    def config(self, listen: str, main: str, other: str) -> str:
        """Give the configuration of a gateway that listens there, for the server's two addresses."""
        count = self.connections if self.connections.isdigit() else f'"{self.connections}"'
        lines = [f"connections = {count}", f'unflushed = "{self.unflushed}"']
        if self.late_write_seconds != LATE_SECONDS:
            lines.append(f"late-write-seconds = {self.late_write_seconds}")
        if self.unflushed == "replay":
            lines.append("sole-writer = true")
        if self.fleet:
            lines.append(f"reconnect-seconds = {FLEET_SECONDS}")
        return CONFIG.format(
            listen=listen,
            main=main,
            other=main if self.alias == "upstream" else other,
            upstream="\n".join(lines),
            policies=self.policies,
            second="other" if self.alias in ("upstream", "switch") else "main",
        )

    def __str__(self) -> str:
        plain = Settings()
        said = [
            f"{name.replace('_', '-')} = {getattr(self, name)!s}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(plain, name)
        ]
        return ", ".join(said) or "the defaults"


def in_fleet(settings: Settings) -> Settings:
    """Give settings of a fleet that are like these as far as there can be such a one."""
    plain = Settings()
    lossless = settings.unflushed == "assume-durable"
    return replace(
        settings,
        fleet=True,
        connections=plain.connections,
        unflushed=settings.unflushed if lossless else plain.unflushed,
        multi_conn=False,
        policies=plain.policies,
        alias=plain.alias,
        fails=plain.fails,
        older=plain.older,
    )


def draw(random: Random) -> Settings:
    """Draw the settings of a schedule."""
    connections = random.choice(CONNECTIONS)
    shared = connections.startswith("shared")
    modes = ["sticky"] * 6 + ["assume-durable"] + (["verify", "replay", "replay"] if shared else [])
    policies = random.choice(POLICIES) if random.random() < 0.2 else ""
    hooked = bool(policies)
    unflushed = random.choice(modes)
    return Settings(
        connections=connections,
        unflushed=unflushed,
        late_write_seconds=random.choice((0, 0, LATE_SECONDS)),
        multi_conn=random.random() < (0.65 if connections in ("per-client", "shared") else 0.9),
        minimum_block=random.choice((1, 1, 1, 4096)),
        # What takes several steps may fail where a loss is told; where nothing may fail, nothing may.
        policies="" if hooked and unflushed == "replay" else policies,
        lacks=random.choice((NOTHING, NOTHING, NOTHING, Flag.SEND_FUA, Flag.SEND_WRITE_ZEROES)),
        alias=random.choice(("", "", "", "name", "upstream", "switch")),
        structured=random.random() < 0.3,
        held=random.choice((0.0, 0.3, 0.7)),
        fails=random.random() < 0.3 and unflushed not in ("replay", "assume-durable"),
    )
