"""What a run under load does (`kill_run`, `fleet_run`), and how it went."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.tools.findings import Findings
from tests.tools.stamps import BLOCK_BYTES

MOST_TIMES = 5
"""As many kills as are wanted, before a run has been in vain."""

NOTHING_LOST = "no kill has lost anything, so that this run proves nothing"

ENDS_WITH_ITS_LINK = "reconnect-seconds = 0\n"

NOBODY_CAME_FROM_ELSEWHERE = (
    "no client has come to another worker than its disk's home, so that this run proves nothing"
)

COARSE_BYTES = 4096
"""Of a block, with `--coarse`: the cache filter's own."""

SURVIVAL = """\
connections = {connections}
unflushed = "{mode}"
"""

TIMES = """\
late-write-seconds = {late_write_seconds:g}
reconnect-seconds = 60
"""

REPLAY = """\
sole-writer = true
replay-bytes = "{replay_bytes}"
"""

OURS = ("worker", "supervisor")
"""What is killed of the gateway itself."""

MODES = ("replay", "sticky", "verify", "assume-durable")


@dataclass(frozen=True)
class Plan:
    """What is done. `seconds` are those between the first kill and the last, about."""

    mode: str
    server: str = "nbdkit"
    by: str = "kill"
    """Or "term", "cut", "stop", "worker" or "supervisor"."""
    upgrades: int = 0
    workers: int = 1
    homes: bool = True
    silent: bool = False
    """One of the workers is stopped while the server is killed."""
    stop_seconds: float = 1
    late_write_seconds: float = 0
    """0 is right only where the old server is dead, so not with "cut"."""
    kills: int = 3
    seconds: float = 6
    seed: int = 0
    survival: bool = True
    defaults: bool = False
    until_wrong: bool = False
    """The load goes on until something is wrong."""
    readers: bool = False
    """Only who leaves without a FLUSH writes."""
    connections: str = "shared"
    replay_bytes: str = "1M"
    write_delay_ms: int = 0
    """What nbdkit's cache waits for each block that it writes back, so that FLUSH takes longer."""
    tcp: bool = False
    clients: int = 2
    """Beside the one that leaves."""
    depth: int = 4
    """Commands of each client under way."""
    blocks: int = 256
    coarse: bool = False
    """nbdkit takes blocks of `COARSE_BYTES` only."""
    atomic: bool = False
    """Values that come back after newer ones were read are wrong, too, where nothing may be lost."""
    template: str = ""
    """More of the upstream's configuration, or instead of ours with `survival` false."""

    @property
    def lossless(self) -> bool:
        """Nobody may miss anything."""
        return self.mode in ("replay", "assume-durable") or self.by in ("stop", *OURS)

    @property
    def most_kills(self) -> int:
        """So many, if the first ones have lost nothing: a busy machine writes little."""
        return MOST_TIMES * self.kills

    @property
    def grain(self) -> int:
        """Blocks that the server takes together."""
        return COARSE_BYTES // BLOCK_BYTES if self.coarse else 1

    def in_steps(self, start: int, count: int) -> bool:
        """Say whether a write has parts of blocks."""
        return bool(start % self.grain or count % self.grain)

    @property
    def cuts(self) -> bool:
        """Sessions end that nobody has ended."""
        return not self.survival or self.by in OURS or self.upgrades > 0

    @property
    def config_survival(self) -> str:
        if not self.survival:
            return ENDS_WITH_ITS_LINK + self.template
        count = self.connections
        lines = SURVIVAL.format(
            connections=count if count.isdigit() else f'"{count}"',
            mode=self.mode,
        )
        if not self.defaults:
            lines += TIMES.format(late_write_seconds=self.late_write_seconds)
        if self.mode == "replay":
            lines += REPLAY.format(replay_bytes=self.replay_bytes)
        return lines + self.template


@dataclass
class Report(Findings):
    """How it went."""

    plan: Plan
    lost: list[int] = field(default_factory=list)
    """At each kill: blocks on which something acknowledged was lost."""
    gateway: str = ""
    """What the gateway said."""

    def __str__(self) -> str:
        plan = self.plan
        how = "" if plan.survival else " without survival"
        lines = [
            f"{plan.server}, {plan.mode}{how}, by {plan.by}, seed {plan.seed}",
            f"  {self.counted}",
        ]
        if self.lost:
            lines.append(f"  {len(self.lost)} kills lost acknowledged writes on {self.lost} blocks")
        return "\n".join([*lines, *self.wrong])
