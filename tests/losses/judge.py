"""The rule of `gateway.losses.rule` once more, for `losses_model`: write by write, as a list of events.

It shares nothing with `Losses`: no trails, no eras, no proofs of its own. It hears what happens, and says which
FLUSH has to answer what, and which READs fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.wire.constants import Errno


def is_loss(error: int) -> bool:
    """Say whether a FLUSH that fails with this error says that something is lost."""
    return error not in (
        0,
        Errno.EPERM,
        Errno.EINVAL,
        Errno.ENOTSUP,
        Errno.ENOMEM,
        Errno.EOVERFLOW,
        Errno.ESHUTDOWN,
    )


@dataclass
class _Write:
    link: int
    place: int
    asked: int
    answered: int = -1
    held: bool = False
    """It was answered, and is neither covered nor lost nor dropped."""


@dataclass
class _Link:
    session: int
    shared: bool
    speaks: bool
    """A FLUSH over it says something of others that do as well."""
    up: int
    state: str = "up"
    tried: bool = False
    failed: int = -1
    """When a FLUSH over it has lost something last."""


@dataclass
class _Flush:
    session: int
    """-1: it is a proof."""
    read: int = -1
    link: int = -1
    sent: int = -1
    waits: bool = False
    over: bool = False
    """Nobody waits for this proof any more."""
    gone: bool = False
    """It is answered."""
    error: int = 0


@dataclass
class _Session:
    told: int = -1
    told_news: int = -1
    owed: set[int] = field(default_factory=set)
    fail_at: set[int] = field(default_factory=set)
    """Places where READs fail."""
    is_open: bool = True
    deaf: bool = False
    opened: int = -1
    read: int = -1
    losses_seen: int = 0


@dataclass
class _Word:
    """What a session was told, as long as nobody else was told of all of it."""

    told: int
    writes: set[int] = field(default_factory=set)
    places: set[int] = field(default_factory=set)
    others: set[int] = field(default_factory=set)


class Judge:
    """Says the rule write by write."""

    def __init__(self) -> None:
        self.now = 0
        self.writes: dict[int, _Write] = {}
        self.links: dict[int, _Link] = {}
        self.flushes: dict[int, _Flush] = {}
        self.sessions: dict[int, _Session] = {}
        self.untold: set[int] = set()
        self.untold_at: set[int] = set()
        self.words: dict[int, _Word] = {}

    def hear(self, what: str, *args: int) -> None:
        """Something happens."""
        self.now += 1
        getattr(self, f"_{what.replace(' ', '_')}")(*args)
        self._look()

    def verdict(self, number: int, error: int) -> int:
        """Say what a FLUSH has to be answered now that the server has answered so."""
        flush = self.flushes[number]
        session = self.sessions[flush.session]
        if session.owed:
            return Errno.EIO
        if error:
            return error
        if flush.read < session.told_news:
            return Errno.EIO
        return flush.error

    def uncovered(self, number: int) -> list[int]:
        """Give what a FLUSH has to wait for."""
        flush = self.flushes[number]
        return [w for w, write in self.writes.items() if self._needs(flush, write)]

    # What it hears

    def _open(self, session: int) -> None:
        self.sessions[session] = _Session(
            owed=set(self.untold), fail_at=set(self.untold_at), opened=self.now
        )

    def _end(self, session: int) -> None:
        self.sessions[session].is_open = False
        self.words.pop(session, None)
        for write in self._held():
            link = self.links[write.link]
            if link.session == session and not link.shared and link.state != "up":
                write.held = False
        for flush in self.flushes.values():
            if flush.session == session:
                flush.waits = False

    def _deaf(self, session: int) -> None:
        self.sessions[session].deaf = True

    def _miss(self, session: int) -> None:
        it, word = self.sessions[session], self.words.pop(session, None)
        it.deaf = True
        if word is not None and it.read < word.told:
            self.untold |= word.writes
            self.untold_at |= word.places
            for other in self.sessions.values():
                if other.opened > word.told:
                    other.owed |= word.writes
                    other.fail_at |= word.places

    def _up(self, link: int, session: int, shared: int, speaks: int) -> None:
        self.links[link] = _Link(session, bool(shared), bool(speaks), self.now)

    def _ask(self, write: int, link: int, place: int) -> None:
        self.writes[write] = _Write(link, place, self.now)

    def _answer(self, number: int) -> None:
        write = self.writes[number]
        write.answered, write.held = self.now, True
        for session, it in self.sessions.items():
            if self._relies(session, write):
                it.fail_at.discard(write.place)
        if self.links[write.link].shared:
            self.untold_at.discard(write.place)
            for word in self.words.values():
                word.places.discard(write.place)
        if write.asked < self._failed(self.links[write.link]):
            self._lose([number])

    def _failed(self, link: _Link) -> int:
        """Say when a FLUSH has failed last of which what goes over this link may be part."""
        if not link.speaks:
            return link.failed
        return max(each.failed for each in self.links.values() if each.speaks)

    def _read(self, flush: int, session: int) -> None:
        self.flushes[flush] = _Flush(session, self.now)
        self.sessions[session].read = self.now

    def _send(self, number: int, link: int) -> None:
        flush = self.flushes.setdefault(number, _Flush(-1))
        flush.link, flush.sent = link, self.now

    def _reply(self, number: int, error: int) -> None:
        flush = self.flushes[number]
        flush.gone = True
        link = self.links[flush.link]
        if not error:
            for write in self._held():
                if write.answered < flush.sent and self._speaks_for(flush.link, write):
                    write.held = False
        elif is_loss(error):
            link.failed = self.now
            alike = [
                w
                for w, write in self.writes.items()
                if write.held
                and (write.link == flush.link or (link.speaks and self.links[write.link].speaks))
            ]
            self._lose(alike)
            if not alike:  # nothing that was answered; but what is under way may be
                for name, session in self.sessions.items():
                    session.losses_seen += session.is_open and (link.shared or link.session == name)
        if flush.session < 0 and not flush.over:
            flush.over = True
            if error:
                self._not_proved(flush.link, flush.sent)
                for other in self.flushes.values():
                    if other.waits and any(
                        self._needs(other, write) and write.link == flush.link
                        for write in self._held()
                    ):
                        other.error = error
        if flush.session >= 0 and not error:
            flush.waits = self.sessions[flush.session].is_open

    def _late(self, number: int) -> None:
        """A proof."""
        flush = self.flushes[number]
        flush.over = True
        self._not_proved(flush.link, math.inf)
        waiting = [each for each in self.flushes.values() if each.waits]
        self._lose(
            w
            for w, write in self.writes.items()
            if write.link == flush.link and any(self._needs(each, write) for each in waiting)
        )

    def _told(self, session: int) -> None:
        """EIO is sent to it."""
        it = self.sessions[session]
        if it.deaf or not it.is_open:
            return
        it.told = self.now
        for other in [each for each, word in self.words.items() if session in word.others]:
            del self.words[other]
        word = _Word(self.now)
        if it.owed and self.untold:
            word.writes, word.places = set(self.untold), set(self.untold_at)
            word.others = {
                number
                for number, other in self.sessions.items()
                if number != session and other.is_open and self.untold <= other.owed
            }
        before = self.words.get(session)
        if before is not None and before.writes and it.read < before.told:
            word.others = word.others & before.others if word.writes else before.others
            word.writes |= before.writes
            word.places |= before.places
        self.words[session] = word
        if it.owed:
            it.told_news = self.now
            self.untold.clear()
            self.untold_at.clear()
        it.owed.clear()
        it.fail_at.clear()

    def _answered(self, flush: int) -> None:
        del self.flushes[flush]

    def _dead(self, number: int, doubt: int) -> None:
        self.links[number].state = "doubt" if doubt else "dead"
        if self.links[number].speaks:
            for link in self.links.values():
                if link.state == "left" and link.speaks:
                    link.state = "dead"
        self._nobody_relies(number)

    def _left(self, number: int) -> None:
        link = self.links[number]
        link.state = {"up": "left", "doubt": "dead"}.get(link.state, link.state)
        self._nobody_relies(number)

    def _nobody_relies(self, number: int) -> None:
        link = self.links[number]
        for write in self._held():
            if write.link == number and not link.shared:
                write.held = self.sessions[link.session].is_open

    def _give_up(self, number: int) -> None:
        self.links[number].state = "dead"
        self._nobody_relies(number)

    def _durable(self, number: int) -> None:
        for write in self._held():
            if write.link == number:
                write.held = False

    def _doubted_too_long(self, number: int) -> None:
        self._lose(w for w, write in self.writes.items() if write.link == number and write.held)

    # What follows

    def _held(self) -> list[_Write]:
        return [write for write in self.writes.values() if write.held]

    def _relies(self, session: int, write: _Write) -> bool:
        link = self.links[write.link]
        return link.shared or link.session == session

    def _needs(self, flush: _Flush, write: _Write) -> bool:
        return write.held and write.answered < flush.read and self._relies(flush.session, write)

    def _speaks_for(self, number: int, write: _Write) -> bool:
        link, other = self.links[number], self.links[write.link]
        return number == write.link or (link.speaks and other.speaks and link.up < write.asked)

    def _prover(self, write: _Write) -> int | None:
        """The oldest link that is up has to prove it, if it is old enough."""
        if not self.links[write.link].speaks or self.links[write.link].tried:
            return None
        up = [n for n, link in self.links.items() if link.state == "up" and link.speaks]
        oldest = min(up, key=lambda n: self.links[n].up, default=None)
        return oldest if oldest is not None and self._speaks_for(oldest, write) else None

    def _is_needed(self, write: _Write) -> bool:
        return any(flush.waits and self._needs(flush, write) for flush in self.flushes.values())

    def _look(self) -> None:
        self._lose(
            w
            for w, write in self.writes.items()
            if write.held
            and (state := self.links[write.link].state) in ("dead", "left")
            and self._prover(write) is None
            and (state == "dead" or self._is_needed(write))
        )

    def _not_proved(self, number: int, sent: float) -> None:
        lost = []
        for w, write in self.writes.items():
            link = self.links[write.link]
            if not write.held or write.answered >= sent or link.state == "up":
                continue
            if self._prover(write) != number:
                continue
            if link.state == "dead" or (link.state == "left" and self._is_needed(write)):
                lost.append(w)
            elif link.state == "doubt":
                link.tried = True
        self._lose(lost)

    def _lose(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            write = self.writes[number]
            if not write.held:
                continue
            write.held = False
            knows = False
            for name, session in self.sessions.items():
                if session.is_open and self._relies(name, write):
                    session.losses_seen += 1
                    if write.answered > session.told:
                        session.owed.add(number)
                        session.fail_at.add(write.place)
                    else:
                        knows = True
                        # Its EIO, whatever it was for, has told of this.
                        session.told_news = session.told
            if self.links[write.link].shared and not knows:
                self.untold.add(number)
                self.untold_at.add(write.place)
            elif self.links[write.link].shared:
                hear = {s for s, e in self.sessions.items() if e.is_open and number in e.owed}
                for word in self.words.values():
                    word.others = word.others & hear if word.writes else hear
                    word.writes.add(number)
                    word.places.add(write.place)

    def key(self) -> tuple[object, ...]:
        """Give all that what it will say depends on. When things were matters only where it is compared."""
        links = {
            n: link
            for n, link in self.links.items()
            if link.state == "up" or any(write.link == n for write in self._held())
        }
        sessions = {s: each for s, each in self.sessions.items() if each.is_open}
        flushes = {
            f: each
            for f, each in self.flushes.items()
            if each.session in sessions
            or (each.session < 0 and each.link in links and not each.gone)
        }
        return (
            *(
                (
                    *(w, write.link, write.place, write.held),
                    *(link.up < write.asked for link in links.values()),
                    *(write.answered < flush.read for flush in flushes.values()),
                    *(write.answered < flush.sent for flush in flushes.values()),
                    *(write.answered > session.told for session in sessions.values()),
                    write.asked < self._failed(self.links[write.link]),
                )
                for w, write in self.writes.items()
                if write.held or write.answered < 0
            ),
            *((n, link.session, link.state, link.tried) for n, link in links.items()),
            *(
                (
                    *(flush.session, flush.link, flush.waits, flush.over, flush.error),
                    *(flush.read < session.told_news for session in sessions.values()),
                )
                for flush in flushes.values()
            ),
            *((s, bool(e.owed), *sorted(e.fail_at), e.deaf) for s, e in sessions.items()),
            bool(self.untold),
            *sorted(self.untold_at),
            *(
                (s, bool(word.writes), *sorted(word.places), *sorted(word.others))
                for s, word in self.words.items()
                if self.sessions[s].read < word.told
            ),
        )
