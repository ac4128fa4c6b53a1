"""The verbs that show what the gateway is doing, and those with which an operator takes part in it.

    {"verb": "status"}
    {"verb": "sessions", "export": "disk", "upstream": "main", "who": "10.0.0.7", "stuck": true}
    {"verb": "sessions", "after": "k3wq7x-7"}
    {"verb": "exports", "after": "disk", "most": 40}
    {"verb": "upstreams"}
    {"verb": "disconnect", "session": "k3wq7x-7", "reason": "the host moves"}
    {"verb": "drain", "listener": "nbd://0.0.0.0", "deadline": 60}
    {"verb": "drain", "end": true, "deadline": 600}
    {"verb": "undrain"}
    {"verb": "disable", "upstream": "main"}
    {"verb": "enable", "upstream": "main"}

All but `session` and `upstream` may be left out; `most` is of a page, and for `sessions`, too. `end` has the
gateway end, as SIGTERM does. The first four are answered in `data` (`gateway.status.shown`). Sessions and
exports come in pages: where `more` is true, the same is asked again with `after` the last of the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import trio

from gateway.admin.control import ControlAnswer, Misunderstood, Verb, no_arguments
from gateway.hub.ends import Cause
from gateway.plural import plural
from gateway.sessions.service import Relayed, Service
from gateway.status.pages import PAGE, AnswerPage, in_slices, next_ones
from gateway.status.shown import (
    Shown,
    exports_shown,
    gateway_shown,
    session_shown,
    upstreams_shown,
)
from gateway.status.stuck import SESSIONS_AT_A_TIME, Stuck
from gateway.status.waits import what_waits
from gateway.wire.handshake import shown

MAX_ID_DIGITS = 18
"""What the number of a session's id may have: more never come, and Python takes its time for very long ones."""

SHOWN_AT_A_TIME = 5
"""How many sessions are shown before the others have their turn: about half a millisecond."""

DISCONNECT_SECONDS = 5.0
"""How long a session may take to end that an operator ends: what is under way is answered, and no more."""


MAX_DEADLINE_SECONDS = 86_400.0
"""The longest that sessions may be let go on: a day, as for all durations of the configuration."""


class House(Protocol):
    """What is not the sessions': the listeners, the certificates, and when it all began."""

    @property
    def began(self) -> float:
        """When, in seconds of `time.time`."""

    def listeners_shown(self) -> list[Shown]:
        """Show the listeners."""

    def terms_shown(self) -> list[Shown]:
        """Show how long certificates are valid, the first to end first."""

    def expiries_shown(self) -> list[Shown]:
        """Show how long each file of certificates is valid still."""

    def drain(self, listener: str | None, seconds: float | None) -> list[str]:
        """Take no more clients at a listener, by its URI (None: at all), and end its sessions in so long (None:
        never). Give what was done; nothing, if there is no such listener.
        """

    def undrain(self, listener: str | None) -> list[str]:
        """Take clients again; give what was done."""

    def older_shown(self) -> Shown | None:
        """Show the process from before an upgrade, as long as it has clients."""

    def fleet_shown(self) -> Shown | None:
        """Show what the gateway is in its fleet; None: it is in none."""

    def end(self, seconds: float | None) -> list[str]:
        """End, and let the sessions go on for so long (None: as the configuration says). Give what was done;
        nothing, if they have been told to end already.
        """

    def sessions_end_in_seconds(self) -> float | None:
        """Say how long sessions may go on, where the gateway ends; None: as long as they like, or they have
        been told to end.
        """


def verbs_of(service: Service, stuck: Stuck, house: House) -> dict[str, Verb]:
    """Give the verbs, by their names."""

    async def status(arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        listeners, terms = house.listeners_shown(), house.terms_shown()
        data = await gateway_shown(
            service,
            stuck,
            began=house.began,
            listeners=listeners,
            terms=terms,
            expiries=house.expiries_shown(),
            sessions_end_in_seconds=house.sessions_end_in_seconds(),
            older=house.older_shown(),
            fleet=house.fleet_shown(),
        )
        return ControlAnswer(True, data=data)

    async def sessions(arguments: Mapping[str, Any]) -> ControlAnswer:
        most, others = _most(arguments)
        asked = _texts(others, ("export", "upstream", "who", "after"), ("stuck",))
        after = place_of(asked["after"]) if "after" in asked else None
        meant = await _meant(service, asked, stuck)
        found = await next_ones(meant, lambda each: place_of(_id(each)), after, most + 1)
        page = AnswerPage(most)
        for number, each in enumerate(found):
            if page.is_full:
                break
            if number % SHOWN_AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
            page.add(session_shown(service, stuck, each))
        return _page("sessions", page.shown, len(page.shown) < len(found))

    async def exports(arguments: Mapping[str, Any]) -> ControlAnswer:
        most, others = _most(arguments)
        after = _texts(others, ("after",)).get("after")
        return _page("exports", *await exports_shown(service, after, most))

    async def upstreams(arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        sessions = Counter[int]()
        for some in in_slices(list(service.running), SESSIONS_AT_A_TIME):
            sessions.update(id(each.opened.location.server) for each in some)
            await trio.lowlevel.checkpoint()
        return ControlAnswer(True, data={"upstreams": await upstreams_shown(service, sessions)})

    async def disconnect(arguments: Mapping[str, Any]) -> ControlAnswer:
        asked = _texts(arguments, ("session", "reason"))
        if "session" not in asked:
            raise Misunderstood('"session" is the id of one, as the log and `sessions` have it')
        found = next((each for each in service.running if _id(each) == asked["session"]), None)
        if found is None:
            return _no(f"there is no session {shown(asked['session'])}")
        reason = asked.get("reason")
        why = f"an operator has disconnected it{f': {reason}' if reason else ''}"
        found.relaying.finish(why, DISCONNECT_SECONDS, Cause.BY_OPERATOR)
        return ControlAnswer(True, (f"session {_id(found)} of export {shown(found.name)} ends",))

    async def drain(arguments: Mapping[str, Any]) -> ControlAnswer:
        others = {key: value for key, value in arguments.items() if key != "deadline"}
        asked, seconds = _texts(others, ("listener",), ("end",)), deadline_in(arguments)
        if not asked.get("end"):
            return _drained(house.drain(asked.get("listener"), seconds), asked.get("listener"))
        if "listener" in asked:
            raise Misunderstood('with "end" all listeners are closed: leave "listener" out')
        done = house.end(seconds)
        return (
            ControlAnswer(True, tuple(done)) if done else _no("all sessions have been told to end")
        )

    async def undrain(arguments: Mapping[str, Any]) -> ControlAnswer:
        listener = _texts(arguments, ("listener",)).get("listener")
        return _drained(house.undrain(listener), listener)

    def _drained(done: list[str], listener: str | None) -> ControlAnswer:
        if not done:
            return _no(f"there is no listener {shown(listener or '')}")
        return ControlAnswer(True, tuple(done))

    async def enable(arguments: Mapping[str, Any]) -> ControlAnswer:
        return _able(arguments, disabled=False)

    async def disable(arguments: Mapping[str, Any]) -> ControlAnswer:
        return _able(arguments, disabled=True)

    def _able(arguments: Mapping[str, Any], *, disabled: bool) -> ControlAnswer:
        name = _texts(arguments, ("upstream",)).get("upstream")
        if name is None:
            raise Misunderstood('"upstream" is the name of one')
        if not service.disable(name, disabled=disabled):
            return _no(f"there is no upstream {shown(name)}")
        sessions = sum(each.opened.location.server.name == name for each in service.running)
        word = "disabled" if disabled else "enabled"
        rest = (
            f"; {plural(sessions, 'session goes', 'sessions go')} on"
            if disabled and sessions
            else ""
        )
        return ControlAnswer(True, (f"upstream {name} is {word}{rest}",))

    return {
        "status": status,
        "sessions": sessions,
        "exports": exports,
        "upstreams": upstreams,
        "disconnect": disconnect,
        "drain": drain,
        "undrain": undrain,
        "enable": enable,
        "disable": disable,
    }


def deadline_in(arguments: Mapping[str, Any]) -> float | None:
    """Give the seconds of a deadline, if there is one. Raises `Misunderstood`."""
    seconds = arguments.get("deadline")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise Misunderstood('"deadline" is a number of seconds')
    if not 0 <= seconds <= MAX_DEADLINE_SECONDS:
        raise Misunderstood(f'"deadline" is from 0 to {MAX_DEADLINE_SECONDS:g} seconds')
    return float(seconds)


def _page(what: str, shown: list[Shown], more: bool) -> ControlAnswer:
    return ControlAnswer(True, data={what: shown, "more": more})


def _no(why: str) -> ControlAnswer:
    return ControlAnswer(False, problems=(why,))


def _id(running: Relayed) -> str:
    return running.membership.session.client.id


def place_of(session: str) -> tuple[int, str]:
    """Ids in the order in which they were given. Raises `Misunderstood`."""
    run, _, number = session.rpartition("-")
    if not (number.isascii() and number.isdecimal() and len(number) <= MAX_ID_DIGITS):
        raise Misunderstood('"after" is the id of a session')
    return int(number), run


def _most(arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Give how many a page has at most, and the other arguments. Raises `Misunderstood`."""
    most = arguments.get("most", PAGE)
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= PAGE:
        raise Misunderstood(f'"most" is a number from 1 to {PAGE}')
    return most, {name: value for name, value in arguments.items() if name != "most"}


async def _meant(service: Service, asked: Mapping[str, Any], stuck: Stuck) -> list[Relayed]:
    """Give the sessions that are meant."""
    found: list[Relayed] = []
    for some in in_slices(list(service.running), SESSIONS_AT_A_TIME):
        found += [each for each in some if _is_meant(each, asked, stuck)]
        await trio.lowlevel.checkpoint()  # the others must not notice
    return found


def _is_meant(running: Relayed, asked: Mapping[str, Any], stuck: Stuck) -> bool:
    identity = running.membership.session.client.identity
    if asked.get("stuck") and not (stuck.is_stuck(running) and what_waits(running)):
        return False
    return (
        asked.get("export") in (None, running.name)
        and asked.get("upstream") in (None, running.opened.location.server.name)
        and (asked.get("who") is None or asked["who"] in identity.describe())
    )


def _texts(
    arguments: Mapping[str, Any], texts: Collection[str], truths: Collection[str] = ()
) -> dict[str, Any]:
    """Give arguments that are texts, or true or false. Raises `Misunderstood`."""
    unknown = arguments.keys() - {*texts, *truths}
    if unknown:
        raise Misunderstood(f"unknown keys {', '.join(sorted(unknown))}")
    for key, value in arguments.items():
        if key in truths and not isinstance(value, bool):
            raise Misunderstood(f'"{key}" is true or false')
        if key in texts and not isinstance(value, str):
            raise Misunderstood(f'"{key}" is a text')
    return dict(arguments)
