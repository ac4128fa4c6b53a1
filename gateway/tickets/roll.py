"""All tickets that there are, in memory, and which of them are in force.

A ticket that does not fit the configuration (its upstream is gone, an [[export]] has its name) is there and is
not in force, until a configuration has a place for it, its time is over, or somebody removes it. A start may
find such tickets. A reload that would put one out of force is refused (`misfits`).

The dictionaries of names and chains are given to `Config` and `Access`, which look into them each time. Nothing
here waits or writes: who enters a ticket or drops it sees to its file.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from gateway.access.chain import Placed
from gateway.config import Config, Ticket
from gateway.config.tickets import misfits
from gateway.tickets.due import Due
from gateway.tickets.kept import IssuedTicket, Over
from gateway.wire.handshake import shown

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

REMOVED = Over("the ticket was removed", expired=False)

Ended = Callable[[Mapping[int, Over]], None]
"""Is told which tickets are over, by their `id`, so that their sessions are ended."""


class Roll:
    """The tickets of a gateway, by their names. `config` is the one that is in force; a reload exchanges it.
    `sooner`: see `Due`.
    """

    log: FilteringBoundLogger

    def __init__(self, config: Config, sooner: Callable[[], None]) -> None:
        self.all: dict[str, IssuedTicket] = {}
        self.names: dict[str, Ticket] = {}
        """Those in force."""
        self.chains: dict[str, tuple[Placed, ...]] = {}
        self.due = Due(self.all, sooner)
        self.gone: list[str] = []
        """Names whose files are still there and should not be."""
        self.ended: Ended = lambda _over: None
        self._config = config
        self._sorted: list[str] = []
        self._counts = True

    # --- What there is

    def after(self, name: str | None, most: int) -> list[IssuedTicket]:
        """Give so many, in the order of their names, from the one after a name on."""
        start = 0 if name is None else bisect_right(self._sorted, name)
        return [self.all[each] for each in self._sorted[start : start + most]]

    def misfits(self, config: Config) -> list[str]:
        """Say which of the tickets in force would not fit a configuration, and why."""
        wrong = []
        for name, ticket in list(self.names.items()):
            for why in misfits(config, ticket):
                wrong.append(f"ticket {shown(name)} could not be in force any more: {why}")
        return wrong

    def why_not(self, ticket: Ticket) -> list[str]:
        """Say why the configuration has no place for a ticket."""
        return [*misfits(self._config, ticket)]

    def not_in_force(self) -> list[IssuedTicket]:
        """Give those for which the configuration has no place."""
        return [each for each in self.all.values() if each.why_not is not None]

    # --- What becomes of it

    def come_into_force(self, config: Config, ended: Ended, log: FilteringBoundLogger) -> None:
        """Another configuration is in force, or the first: it may have a place for tickets that had none."""
        self._config, self.ended, self.log = config, ended, log
        for kept in self.not_in_force():
            self._put_in_force(kept)

    def enter(self, kept: IssuedTicket) -> None:
        """It is there."""
        self.all[kept.name] = kept
        kept.counts_them_all(counts=self._counts)
        insort(self._sorted, kept.name)
        self.due.look_later(kept)
        self._put_in_force(kept)

    def _put_in_force(self, kept: IssuedTicket) -> None:
        """Put it in force if the configuration has a place for it; else say why not."""
        why = next(misfits(self._config, kept.ticket), None)
        chain: tuple[Placed, ...] = ()
        if why is None:
            try:
                chain = (kept.placed(), *_placed(kept.ticket))
            except (Exception, SystemExit) as error:  # a policy's, of whoever wrote it
                why = f"policies: {error}"
        kept.why_not = why
        if why is None:
            self.names[kept.name] = kept.ticket
            self.chains[kept.name] = chain

    def renew(self, kept: IssuedTicket, until: float | None) -> None:
        """It is in force until another time."""
        kept.until = until
        kept.counts_from_now()
        self.due.look_later(kept)
        if kept.name in self.chains:
            self.chains[kept.name] = (kept.placed(), *self.chains[kept.name][1:])

    def drop(self, kept: IssuedTicket) -> None:
        """It is there no more."""
        name = kept.name
        del self.all[name]
        del self._sorted[bisect_right(self._sorted, name) - 1]
        self.names.pop(name, None)
        chain = self.chains.pop(name, ())
        for placed in chain:
            try:
                placed.policy.retire()
            except (Exception, SystemExit):
                self.log.exception("a policy failed at the end of a ticket", policy=placed.name)

    def count_uses(self, *, here: bool) -> None:
        """From now on all sessions are counted here; or another process says when a use is over."""
        self._counts = here
        for kept in self.all.values():
            kept.counts_them_all(counts=here)


def _placed(ticket: Ticket) -> Iterable[Placed]:
    """Give the policies that a ticket names."""
    if ticket.policies:
        from gateway.access.loading import made  # costs nothing where there are no policies

        for use in ticket.policies:
            yield Placed(made(use), use.name, use.observed, use.options)
