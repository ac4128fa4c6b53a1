"""How long a gateway may rely on its lease in etcd. Pure: whoever asks says what time it is.

etcd lets a lease end so many seconds after it has *handled* the last renewal. When that was, the gateway does
not know: it was between the sending of the renewal and the coming of its answer. So it counts from the sending.
It may stop too early by this, and never too late.

Two more things can go wrong between "it still may" and the moment when the server has what was sent, and each
has a number of its own:

- The gateway looks, and sends a moment later: another process had the processor, or the machine was busy.
  `margin` is taken off the lease for that.
- What was sent lies in buffers, in the network, in the server. The next home waits for that, after the lease
  has ended (`gateway.fleet.tenure`).

Neither is a proof. A process may be stopped between its look and its sending for longer than any margin.

Times are of CLOCK_BOOTTIME, in seconds: it goes on while the machine sleeps, as etcd's does, and nobody sets it
(clock_gettime(2)). Its rate is taken to be right: a clock that is wrong by 500 parts in a million, as much as
NTP corrects, is 5 ms wrong after ten seconds, and any margin has that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

MARGIN_PART = 0.2
"""The margin, as a part of the lease: two seconds of ten. A process that has waited for two seconds for its
processor is rare, and one that has lost them of ten renews still in good time."""

RENEWALS = 4
"""How often a lease is renewed within its time: two of the renewals may be lost, one after the other."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease of so many `seconds`, of which the last `margin` are not used. `until` is when it must not be
    relied on any more; a lease that was never granted has passed.
    """

    seconds: float
    margin: float
    until: float = -inf

    def renewed(self, sent: float, seconds: float) -> Lease:
        """Give the lease after etcd has answered that it lasts for `seconds`; the question was sent at `sent`.
        Answers may come in any order. A lease of no seconds is over, and never again what it was.
        """
        if seconds <= 0:
            return replace(self, until=-inf)
        return replace(self, until=max(self.until, sent + min(seconds, self.seconds) - self.margin))

    def may(self, now: float) -> bool:
        """Say whether it can be relied on at this moment: the look before each batch."""
        return now < self.until
