"""The verbs `export-add`, `export-renew`, `export-remove` and `export-list` of the control socket, for exports
that are made at run time (`gateway.tickets`).

    {"verb": "export-add", "export": "backup-7", "upstream": "disks", "upstream-name": "vm-7",
     "read-only": true, "who": {"network": "10.0.0.0/8"},
     "policies": [{"use": "limit", "connections": 8}], "for": 3600, "once": true}
    {"verb": "export-renew", "export": "backup-7", "for": 3600}
    {"verb": "export-renew", "export": "backup-7", "until": "2026-12-24T18:00:00Z"}
    {"verb": "export-remove", "export": "backup-7"}
    {"verb": "export-list", "after": "backup-7"}

`export-add` takes what `[[export]]` may say, by the same keys, and `who`, `once`, and `for` (seconds) or
`until`; without an `export`, a name is made up that nobody guesses. What is said of the ticket comes back in
`data`. If whoever asked goes before the answer, there is no ticket. `export-list` gives a page, and says
whether there is `more` after it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import ControlAnswer, Misunderstood, Verb, who_asks
from gateway.config import Config, NeverTicket, NoTicket
from gateway.plural import plural
from gateway.sessions.service import Service
from gateway.status.pages import PAGE, AnswerPage
from gateway.wire.handshake import shown

if TYPE_CHECKING:
    from gateway.tickets.book import Book
    from gateway.tickets.kept import IssuedTicket

MOST_FOR_SECONDS = 10 * 366 * 86400
"""The longest that is said in seconds: what is to be there for longer belongs into the configuration."""

NAME_BYTES = 16
"""Of chance, in a name that is made up: as many as a UUID has, and all of them chance."""

SHOWN_AT_A_TIME = 40
"""How many are shown before the others have their turn: a third of a millisecond."""

NOWHERE = "exports can be made at run time where [tickets] says where they are kept"


def verbs_of(service: Service) -> dict[str, Verb]:
    """Give the verbs, by the words after `export-`."""

    async def add(arguments: Mapping[str, Any]) -> ControlAnswer:
        said = dict(arguments)
        until = _until(said)
        if "name" in said:
            raise Misunderstood('the name is said by "export"')
        name = said.pop("export", None) or secrets.token_hex(NAME_BYTES)
        _text(name, "export")
        book = _book(service)
        kept = await book.add({"name": name, **said}, until, who_asks())

        async def undo() -> None:
            if book.get(name) is kept:
                await book.remove(name, "nobody: who asked for it has gone")

        nobody = service.access.why_nobody(name)
        problems = () if nobody is None else (f"nobody can have it now: {nobody}",)
        data = {"ticket": ticket_shown(kept)}
        return ControlAnswer(True, (_in_words(service.config, kept),), problems, data, undo)

    async def renew(arguments: Mapping[str, Any]) -> ControlAnswer:
        said = dict(arguments)
        until = _until(said)
        name = _only_name(said)
        if until is None:
            raise Misunderstood('"for" says for how many seconds, or "until" until when')
        kept = await _book(service).renew(name, until, who_asks())
        data = {"ticket": ticket_shown(kept)}
        return ControlAnswer(True, (_in_words(service.config, kept),), data=data)

    async def remove(arguments: Mapping[str, Any]) -> ControlAnswer:
        name = _only_name(arguments)
        book = _book(service)
        kept = book.get(name)
        sessions = 0 if kept is None else kept.sessions
        left = await book.remove(name, who_asks())
        rest = f"; {plural(sessions, 'session ends', 'sessions end')}" if sessions else ""
        comes_back = "its file is left, so a restart brings it back"
        if service.config.tickets.etcd:
            comes_back = (
                "the others have it until etcd answers, and keep it if this gateway ends before"
            )
        problems = () if left is None else (f"{comes_back}: {left}",)
        return ControlAnswer(True, (f"export {shown(name)} is removed{rest}",), problems)

    async def list_(arguments: Mapping[str, Any]) -> ControlAnswer:
        _know(arguments, {"after"})
        after = arguments.get("after")
        if after is not None:
            _text(after, "after")
        page = AnswerPage()
        found = _book(service).after(after, PAGE + 1)
        for number, kept in enumerate(found):
            if page.is_full:
                break
            if number % SHOWN_AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
            page.add(ticket_shown(kept))
        more = len(page.shown) < len(found)
        return ControlAnswer(True, data={"tickets": page.shown, "more": more})

    verbs = {"add": add, "renew": renew, "remove": remove, "list": list_}
    return {name: _answered(verb) for name, verb in verbs.items()}


def _answered(verb: Verb) -> Verb:
    async def answered(arguments: Mapping[str, Any]) -> ControlAnswer:
        try:
            return await verb(arguments)
        except NoTicket as error:
            never = isinstance(error, NeverTicket)
            return ControlAnswer(False, problems=error.problems, misunderstood=never)

    return answered


def _book(service: Service) -> Book:
    if service.tickets is None:
        raise NoTicket(NOWHERE)
    return service.tickets


# --- What is said


def ticket_shown(kept: IssuedTicket) -> dict[str, Any]:
    """Show a ticket, in names and numbers (docs/tickets.md has the names)."""
    from gateway.tickets.kept import text_of

    ticket, until = kept.ticket, kept.until
    return {
        "export": kept.name,
        "upstream": ticket.upstream,
        "made": text_of(kept.made),
        "until": None if until is None else text_of(until),
        "once": ticket.once,
        "used_by": None if kept.user is None else " ".join(kept.user),
        "sessions": kept.sessions,
        "why_not": kept.why_not,
        "said": dict(kept.said),
    }


def _in_words(config: Config, kept: IssuedTicket) -> str:
    from gateway.tickets.kept import text_of

    route = config.route(kept.name)
    there = "" if route is None else f" leads to {shown(route.upstream_name)}"
    until = "it is removed" if kept.until is None else text_of(kept.until)
    return f"export {shown(kept.name)}{there} of upstream {kept.ticket.upstream}, until {until}"


# --- Arguments


def _until(said: dict[str, Any]) -> float | None:
    """Take the time out of what is said until which a ticket is in force: in seconds since the epoch."""
    seconds, until = said.pop("for", None), said.pop("until", None)
    if until is not None and seconds is not None:
        raise Misunderstood('either "for" or "until" says how long, not both')
    if until is not None:
        from gateway.tickets.kept import seconds_of

        try:
            return seconds_of(until)
        except (ValueError, OverflowError) as error:
            raise Misunderstood(f'"until": {error}') from None
    if seconds is None:
        return None
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= MOST_FOR_SECONDS:
        raise Misunderstood(
            f'"for" is a number of seconds, more than 0 and up to {MOST_FOR_SECONDS}'
        )
    return time.time() + float(seconds)


def _only_name(arguments: Mapping[str, Any]) -> str:
    _know(arguments, {"export"})
    return _text(arguments.get("export"), "export")


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise Misunderstood(f'"{key}" is the name of a ticket')
    return value


def _know(arguments: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := arguments.keys() - known:
        raise Misunderstood(f"unknown keys {', '.join(sorted(unknown))}")
