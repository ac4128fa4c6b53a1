"""Which verbs of the control socket HTTP offers, and with what arguments: one table.

A verb that looks is a GET, with its arguments in the query; one that does something is a POST, with its
arguments in a JSON object. Arguments have the names that they have at the control socket. What the gateway
checks by itself (whether there is such an export, how long a pause may be) is not checked here a second time.
But an argument that nobody knows is refused before the gateway is asked, and so is one of the wrong type.

A token must not write files or run programs. So two arguments are not offered: the policies of an export that
is made at run time, and the program of an upgrade.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Type = Literal["string", "boolean", "number", "integer", "object"]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument."""

    name: str
    type: Type
    meaning: str
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """A GET, and the verb that it asks."""

    verb: str
    summary: str
    arguments: tuple[Argument, ...] = ()
    shows: str = field(kw_only=True)
    """The schema of the answer (`gateway.web.openapi`)."""
    path: str = field(default="", kw_only=True)
    """Behind /api/v1/, where it is not the verb."""

    @property
    def called(self) -> str:
        """Give that path."""
        return self.path or self.verb


@dataclass(frozen=True, slots=True)
class Do:
    """A POST, and the verb that it asks."""

    verb: str
    summary: str
    arguments: tuple[Argument, ...] = ()
    goes_on: bool = False
    """Behind the answer comes more, as server-sent events."""
    path: str = field(default="", kw_only=True)
    """Behind /api/v1/, where it is not the verb."""

    @property
    def called(self) -> str:
        """Give that path."""
        return self.path or self.verb


class Misread(Exception):
    """An argument makes no sense; the text says what was expected, and what came."""


_EXPORT = Argument("export", "string", "The name of an export.")
_PATTERN = Argument("export", "string", "The name of an export, or with all a pattern.")
_ALL = Argument("all", "boolean", "The export is a pattern, and all that match are meant.")
_OF_UPSTREAM = Argument("upstream", "string", "In place of export: all exports of this upstream.")
_WITHIN = Argument("within", "number", "How many seconds may pass until they are quiet.")
_ACCEPT_LOSS = Argument("accept-loss", "boolean", "Do it also where something may be lost by it.")
_UNTIL = (
    Argument("for", "number", "How many seconds it lasts."),
    Argument("until", "string", "Until when, in place of for (ISO 8601)."),
)
_AFTER = "The last of the page before: the next page is given."

LOOKS = (
    Look(
        "status",
        "The gateway on one screen: listeners, upstreams, counts, and what is not as usual",
        shows="Status",
    ),
    Look(
        "sessions",
        "Who is connected, what each has done, and what each waits for; in pages",
        (
            Argument("export", "string", "Those of one export."),
            Argument("upstream", "string", "Those of one upstream."),
            Argument("who", "string", "Those whose identity has this text in it."),
            Argument("stuck", "boolean", "Those in which nothing goes on."),
            Argument("after", "string", _AFTER),
            Argument("most", "integer", "How many a page has at most."),
        ),
        shows="Sessions",
    ),
    Look(
        "exports",
        "What is served, and what was done with it; in pages",
        (
            Argument("after", "string", _AFTER),
            Argument("most", "integer", "How many a page has at most."),
        ),
        shows="Exports",
    ),
    Look("upstreams", "The servers, and whether they are there", shows="Upstreams"),
    Look(
        "losses",
        "What disks may have lost that not everybody was told of",
        (_EXPORT,),
        shows="Losses",
    ),
    Look(
        "export-list",
        "The exports that were made at run time; in pages",
        (Argument("after", "string", _AFTER),),
        shows="Tickets",
        path="tickets",
    ),
    Look(
        "log",
        "The last lines of the log",
        (Argument("after", "integer", "The number of a line: those after it are given."),),
        shows="Log",
    ),
)

DOES = (
    Do("reload", "Take the configuration and all credentials up anew"),
    Do(
        "pause",
        "Hold an export's sessions between two requests, all of them flushed",
        (
            *(_PATTERN, _ALL, _OF_UPSTREAM, _WITHIN),
            Argument("for", "number", "After how many seconds it goes on by itself."),
            Argument("holder", "string", "A word by which who pauses is known again."),
            _ACCEPT_LOSS,
        ),
    ),
    Do(
        "resume",
        "Have paused exports go on",
        (
            *(_PATTERN, _ALL, _OF_UPSTREAM),
            Argument("holder", "string", "Only what this holder has paused."),
        ),
    ),
    Do(
        "switch",
        "Lead an export over to another server, with its sessions",
        (
            *(_PATTERN, _ALL, _OF_UPSTREAM, _WITHIN),
            Argument("uri", "string", "The other server; without it, back to the configured one."),
            Argument(
                "close-first", "boolean", "Close the old connections before new ones are made."
            ),
            _ACCEPT_LOSS,
        ),
    ),
    Do(
        "losses",
        "Forget what was lost and nobody was told of",
        (
            _EXPORT,
            Argument("forget", "boolean", "Do forget it; otherwise it is only shown.", needed=True),
        ),
    ),
    Do(
        "disconnect",
        "End one session in good order",
        (
            Argument("session", "string", "Its id.", needed=True),
            Argument("reason", "string", "A word for the log."),
        ),
    ),
    Do(
        "drain",
        "Take no more clients; those that are there stay, or have until a deadline",
        (
            Argument("listener", "string", "At this listener alone, by its URI."),
            Argument("deadline", "number", "After how many seconds sessions are told to end."),
            Argument("end", "boolean", "The gateway ends when they have, as by SIGTERM."),
        ),
    ),
    Do(
        "undrain",
        "Take clients again",
        (Argument("listener", "string", "At this listener alone, by its URI."),),
    ),
    Do(
        "disable",
        "Connect to an upstream no more; its sessions go on",
        (Argument("upstream", "string", "Its name.", needed=True),),
    ),
    Do(
        "enable",
        "Connect to an upstream again",
        (Argument("upstream", "string", "Its name.", needed=True),),
    ),
    Do(
        "upgrade",
        "Have the program that is installed now take over, as it is",
        (Argument("deadline", "number", "How many seconds the older process keeps its clients."),),
    ),
    Do(
        "export-add",
        "Make an export, until a time or for one use; the answer has its name",
        (
            Argument(
                "export", "string", "Its name; without it, one is made up that nobody guesses."
            ),
            Argument("upstream", "string", "Where it leads.", needed=True),
            Argument("upstream-name", "string", "The name to ask the server for."),
            Argument("description", "string", "Text that a list of exports shows."),
            Argument("read-only", "boolean", "Nothing may change it."),
            Argument("hide", "boolean", "To whom it is denied, there is no such export."),
            Argument("tls", "string", '"require": only for clients over TLS.'),
            Argument("unaligned", "string", "As in [[export]]."),
            Argument("synthesise-allocation", "boolean", "As in [[export]]."),
            Argument("contexts", "object", "As in [[export]]."),
            Argument("who", "object", "Who may have it, as in [[rule]]."),
            Argument("once", "boolean", "For one use."),
            *_UNTIL,
        ),
        path="exports",
    ),
    Do(
        "export-renew",
        "Have an export that was made at run time last longer, or shorter",
        (Argument("export", "string", "Its name.", needed=True), *_UNTIL),
    ),
    Do(
        "export-remove",
        "Remove an export that was made at run time; its sessions end",
        (Argument("export", "string", "Its name.", needed=True),),
    ),
    Do(
        "trace",
        "See what the clients and the server of an export say to each other",
        (
            Argument("export", "string", "The name of the export.", needed=True),
            Argument("who", "string", "Only clients whose identity fits this pattern."),
            Argument("seconds", "number", "How long it lasts."),
            Argument("payloads", "integer", "How many bytes of each payload are shown."),
        ),
        goes_on=True,
    ),
)

TRUTHS: Mapping[str, bool] = {"true": True, "1": True, "": True, "false": False, "0": False}
"""What a query may say of a boolean: `?stuck` is `?stuck=true`."""


def from_query(arguments: tuple[Argument, ...], query: list[tuple[str, str]]) -> dict[str, Any]:
    """Give the arguments of a query. Raises `Misread`."""
    said: dict[str, Any] = {}
    for name, text in query:
        if name in said:
            raise Misread(f"{name} is there twice")
        said[name] = text
    known = {each.name: each for each in arguments}
    for name, text in said.items():
        if (argument := known.get(name)) is not None and argument.type != "string":
            said[name] = _value(argument, text)
    return checked(arguments, said)


def _value(argument: Argument, text: str) -> bool | float | int:
    try:
        if argument.type == "boolean":
            return TRUTHS[text.lower()]
        return int(text) if argument.type == "integer" else float(text)
    except (KeyError, ValueError):
        raise Misread(f"{argument.name} is {_a(argument.type)}, got {text[:80]!a}") from None


def checked(arguments: tuple[Argument, ...], said: object) -> dict[str, Any]:
    """Give the arguments that somebody has said, if they are some. Raises `Misread`."""
    if not isinstance(said, dict):
        raise Misread("expected a JSON object with the arguments")
    known = {each.name: each for each in arguments}
    for name, value in said.items():
        if name not in known:
            expected = f"known are {', '.join(known)}" if known else "there are none here"
            raise Misread(f"unknown argument {name[:80]!a}; {expected}")
        if not _is(known[name].type, value):
            raise Misread(f"{name} is {_a(known[name].type)}, got {str(value)[:80]!a}")
    for each in arguments:
        if each.needed and each.name not in said:
            raise Misread(f"{each.name} is needed: {each.meaning}")
    return said


def _is(type_: Type, value: object) -> bool:
    match type_:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "object":
            return isinstance(value, dict)


def _a(type_: Type) -> str:
    words = {
        "string": "text",
        "boolean": "true or false",
        "number": "a number",
        "integer": "a whole number",
        "object": "an object",
    }
    return words[type_]
