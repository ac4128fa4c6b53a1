"""The verbs that show what the gateway is doing, and those with which an operator takes part in it.

    {"verb": "status"}
    {"verb": "sessions", "export": "disk", "upstream": "main", "who": "10.0.0.7", "stuck": true}
    {"verb": "sessions", "after": "k3wq7x-7"}
    {"verb": "exports", "after": "disk"}
    {"verb": "upstreams"}
    {"verb": "disconnect", "session": "k3wq7x-7", "reason": "the host moves"}
    {"verb": "drain", "listener": "nbd://0.0.0.0", "deadline": 60}
    {"verb": "drain", "end": true, "deadline": 600}
    {"verb": "undrain"}
    {"verb": "disable", "upstream": "main"}
    {"verb": "enable", "upstream": "main"}

All but `session` and `upstream` may be left out. `end` has the gateway end, as SIGTERM does. The first four are
answered in `data` (`gateway.status.shown`). Sessions and exports come in pages: where `more` is true, the same
is asked again with `after` the last of the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import trio

from gateway.admin.control import ControlAnswer, Misunderstood, Verb, no_arguments
from gateway.hub.ends import Cause
from gateway.sessions.service import Relayed, Service
from gateway.status.shown import (
    Shown,
    exports_shown,
    gateway_shown,
    in_slices,
    session_shown,
    upstream_shown,
)
from gateway.status.stuck import SESSIONS_AT_A_TIME, Stuck
from gateway.status.waits import what_waits
from gateway.wire.handshake import shown

PAGE = 200
"""Sessions or exports in one answer: some hundred bytes each, so that it stays under `MAX_ANSWER_BYTES` and
becomes JSON in a millisecond.
"""

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

    def drain(self, listener: str | None, seconds: float | None) -> list[str]:
        """Take no more clients at a listener, by its URI (None: at all), and end its sessions in so long (None:
        never). Give what was done; nothing, if there is no such listener.
        """

    def undrain(self, listener: str | None) -> list[str]:
        """Take clients again; give what was done."""

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
            sessions_end_in_seconds=house.sessions_end_in_seconds(),
        )
        return ControlAnswer(True, data=data)

    async def sessions(arguments: Mapping[str, Any]) -> ControlAnswer:
        asked = _texts(arguments, ("export", "upstream", "who", "after"), ("stuck",))
        meant = await _some(
            _after(service, asked.get("after")), lambda each: _is_meant(each, asked, stuck)
        )
        page = []
        for at_a_time in in_slices(meant[:PAGE], SHOWN_AT_A_TIME):
            page += [session_shown(service, stuck, each) for each in at_a_time]
            await trio.lowlevel.checkpoint()
        return ControlAnswer(True, data={"sessions": page, "more": len(meant) > PAGE})

    async def exports(arguments: Mapping[str, Any]) -> ControlAnswer:
        after = _texts(arguments, ("after",)).get("after")
        page = await exports_shown(service, after, PAGE + 1)
        return ControlAnswer(True, data={"exports": page[:PAGE], "more": len(page) > PAGE})

    async def upstreams(arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        sessions = Counter(id(each.opened.location.server) for each in service.running)
        page = [upstream_shown(service, each, sessions[id(each)]) for each in service.led_to]
        return ControlAnswer(True, data={"upstreams": page})

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
        asked, seconds = _texts(others, ("listener",), ("end",)), _deadline(arguments)
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
        rest = f"; {sessions} sessions go on" if disabled and sessions else ""
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


def _deadline(arguments: Mapping[str, Any]) -> float | None:
    """Give the seconds of a deadline, if there is one. Raises `Misunderstood`."""
    seconds = arguments.get("deadline")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise Misunderstood('"deadline" is a number of seconds')
    if not 0 <= seconds <= MAX_DEADLINE_SECONDS:
        raise Misunderstood(f'"deadline" is from 0 to {MAX_DEADLINE_SECONDS:g} seconds')
    return float(seconds)


def _no(why: str) -> ControlAnswer:
    return ControlAnswer(False, problems=(why,))


def _id(running: Relayed) -> str:
    return running.membership.session.client.id


def _number(running: Relayed) -> tuple[int, str]:
    """Ids in the order in which they were given."""
    run, _, number = _id(running).rpartition("-")
    return int(number) if number.isdecimal() else 0, run


def _after(service: Service, after: str | None) -> list[Relayed]:
    """Give the sessions, in the order in which they came, from the one after an id on."""
    there = sorted(service.running, key=_number)
    if after is None:
        return there
    number = after.rpartition("-")[2]
    if not number.isdecimal():
        raise Misunderstood('"after" is the id of a session')
    return [each for each in there if _number(each)[0] > int(number)]


async def _some(
    sessions: Collection[Relayed], is_meant: Callable[[Relayed], bool]
) -> list[Relayed]:
    """Give as many of those that are meant as a page takes, and one more if there is one."""
    found: list[Relayed] = []
    for number, each in enumerate(sessions, start=1):
        if is_meant(each):
            found.append(each)
        if len(found) > PAGE:
            break
        if number % SESSIONS_AT_A_TIME == 0:
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
