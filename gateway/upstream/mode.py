"""Over how many connections an upstream serves: the choices of `[upstream.NAME]`."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.config import Connections, Upstream
from gateway.losses.survival import Doubt, Survival, Unanswered


@dataclass(frozen=True, slots=True)
class Mode:
    """`connections` and what belongs to it."""

    wanted: Connections
    """How many connections, and for whom. `gateway.upstream.coherence` decides how many there are."""
    required: bool
    """An export that cannot have so many is refused."""
    stripe: int
    """Size in bytes of the parts of a disk that connections have in turns."""
    strong: bool
    """What one connection has written is seen over all others at once."""
    survival: Survival

    def bundled(self, count: int) -> bool:
        """Say whether a session has a share of a bundle, rather than a link of its own, if there are so many
        connections.
        """
        return (
            self.wanted.shared
            or count > 1
            or self.survival.unflushed in (Doubt.VERIFY, Doubt.REPLAY)
            or self.survival.stall_seconds > 0
        )

    def why_translated(self, count: int) -> str:
        """Say why no command of a session is relayed as it is, if there are so many connections; empty if that
        is not why.
        """
        if not self.bundled(count):
            return ""
        if self.wanted.shared:
            return "clients share " + ("one connection" if count == 1 else f"{count} connections")
        if count > 1:
            return f"requests are spread over {count} connections"
        if self.survival.stall_seconds > 0:
            return "what its connection leaves unanswered may be asked over another (stall-seconds)"
        return f"what its connection leaves unanswered is asked over another ({self.wanted} wanted)"


def mode_of(settings: Upstream, *, through_us: bool = True) -> Mode:
    """Give over how many connections an upstream serves, and what becomes of clients when they are lost.
    `through_us`: see `Survival`.
    """
    survival = Survival(
        settings.reconnect_seconds,
        Doubt(settings.unflushed),
        settings.replay_bytes,
        Unanswered(settings.unknown_writes),
        settings.late_write_seconds,
        settings.stall_seconds,
        settings.identity == "check",
        settings.sole_writer,
        through_us,
    )
    return Mode(
        settings.connections,
        settings.connections_required,
        settings.stripe,
        settings.coherence == "strong",
        survival,
    )
