"""The clients that the older process has, as the newer one's limits count them.

The older process says who is there, and who has left. A client counts at its listener (`max-connections`), and,
once it has opened an export, wherever our rules and the export have a policy that counts sessions (`limit`,
`writers`). A client that we hand over counts from that moment on, so that two which come at once are not both
the last that may.

Rates are not counted here: each process has its own, until the older one has gone.
"""

from __future__ import annotations

from collections import Counter

from gateway import clock
from gateway.access.rules import NotGranted
from gateway.handover.given import Door
from gateway.identity import Identity
from gateway.policy import Client, Policy, Session
from gateway.sessions.service import Service


class Beside:
    """Who is there."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._doors: Counter[Door] = Counter()
        self._there: dict[str, Door] = {}
        self._sessions: dict[str, tuple[Session, list[Policy]]] = {}
        self.spoken_of: set[str] = set()
        """Exports of which an operator speaks at this moment, and that are known there."""

    def __len__(self) -> int:
        return len(self._there)

    @property
    def sessions(self) -> int:
        """How many have opened an export, as far as we were told."""
        return len(self._sessions)

    def names(self) -> set[str]:
        """Give the exports that they have opened, and those that were paused there."""
        return {session.export for session, _counting in self._sessions.values()} | self.spoken_of

    def at(self, door: Door) -> int:
        """How many have come through a door."""
        return self._doors[door]

    def here(self, id_: str, door: Door, who: Identity, export: str | None) -> None:
        """Somebody is there, and has opened an export, if one is given."""
        if id_ not in self._there:
            self._there[id_] = door
            self._doors[door] += 1
        if export is None or id_ in self._sessions:
            return
        client = Client(who, clock.here(), _uri(door), id=id_)
        session = Session(client, export)
        counting: list[Policy] = []
        try:
            chain = self._service.access.find(client, export).chain
        except NotGranted:  # by our rules; it goes on as it was promised
            chain = ()
        for placed in chain:
            try:
                if placed.policy.stands_elsewhere(session):
                    counting.append(placed.policy)
            except Exception as error:  # a bug of a policy keeps nobody from being served
                self._service.log.error(
                    "a policy failed at an upgrade", policy=placed.name, exc_info=error
                )
        self._sessions[id_] = session, counting

    def gone(self, id_: str) -> None:
        """Somebody has left. Who is not known is passed over."""
        door = self._there.pop(id_, None)
        if door is not None:
            self._doors[door] -= 1
            if not self._doors[door]:
                del self._doors[door]
        session, counting = self._sessions.pop(id_, (None, []))
        for policy in counting:
            assert session is not None
            self._contained(policy, session)

    def all_gone(self) -> None:
        """The older process has ended."""
        for id_ in list(self._there):
            self.gone(id_)

    def _contained(self, policy: Policy, session: Session) -> None:
        try:
            policy.leave(session)
        except Exception as error:
            self._service.log.error(
                "a policy failed at an upgrade", policy=type(policy).__name__, exc_info=error
            )


def _uri(door: Door) -> str:
    """Give a door in words, for rules that name listeners."""
    return " ".join(str(each) for each in door if each is not None)
