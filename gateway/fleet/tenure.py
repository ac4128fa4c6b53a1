"""A gateway's time as the home of one disk: when it may begin, and whether it still may. Pure.

    CLEARING   etcd says that we are the home, but from a home before us something may still come
    SERVING    nothing can come any more, as far as can be known: we may
    OVER       we have given it away, or have lost it; and never again in this tenure

What is done while it is CLEARING:

- nothing, where the home before has given the disk away: all that it sent was answered;
- with a `fence`, a program is run that cuts the home before off, as often as it takes. Until it has succeeded
  nothing is sent, not even a READ, and there is no other way to begin;
- else we wait for as long as a write may be on its way, from when we have *heard* that the key is ours. It came
  after the lease of the home before had ended.

While it is SERVING, whoever sends to the server looks before each batch whether it still may: the tenure is not
over, and the lease can be relied on (`gateway.fleet.lease`). If it cannot, that may pass; a tenure that is over
does not come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import inf

from gateway.fleet.lease import Lease
from gateway.fleet.record import HomeRun


class TenureStage(Enum):
    """How far a tenure has come."""

    CLEARING = "clearing"
    SERVING = "serving"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Tenure:
    """A tenure. `ready` is when the wait is over, in seconds of CLOCK_BOOTTIME; with a fence there is none, and
    it is infinite. `before` are those from whom something may still come.
    """

    stage: TenureStage
    before: tuple[HomeRun, ...] = ()
    ready: float = -inf

    @classmethod
    def begun(
        cls, before: Sequence[HomeRun], heard: float, late_write_seconds: float, *, fence: bool
    ) -> Tenure:
        """Give the tenure of a gateway that has heard at `heard` that it is the home, after these."""
        if not before:
            return cls(TenureStage.SERVING)
        return cls(
            TenureStage.CLEARING, tuple(before), inf if fence else heard + late_write_seconds
        )

    def waited(self, now: float) -> Tenure:
        """Give the tenure at a later moment: what there was to wait for may have passed."""
        if self.stage is TenureStage.CLEARING and now >= self.ready:
            return Tenure(TenureStage.SERVING)
        return self

    def fenced(self) -> Tenure:
        """Give the tenure after all those before have been cut off."""
        return Tenure(TenureStage.SERVING) if self.stage is TenureStage.CLEARING else self

    def ended(self) -> Tenure:
        """Give the tenure after it was given away, or lost."""
        return replace(self, stage=TenureStage.OVER)

    def may(self, lease: Lease, now: float) -> bool:
        """Say whether something may be sent to the server at this moment."""
        return self.stage is TenureStage.SERVING and lease.may(now)
