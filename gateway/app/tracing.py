"""The verb `trace` of the control socket; it is done in `gateway.sessions.tracing`.

    {"verb": "trace", "export": "disk", "who": "10.0.0.*", "seconds": 10, "payloads": 16, "raw": true}

Everything but `export`, a name, may be left out. Behind the answer come lines of JSON, as long as the trace
lasts:

    {"began": 1700000000.25}
    {"time": 0.0, "session": "k3wq7x-4", "note": "is there: 10.0.0.5:40112, structured framing"}
    {"time": 0.1, "session": "k3wq7x-4", "connection": 1, "side": "client", "sent": false, "text": "READ 0+512"}
    {"time": 0.4, "dropped": 12}
    {"time": 10.0, "end": "10 s are over", "messages": 5170, "dropped": 12}

`sent` says that the gateway has sent it, and `side` to whom, or from whom it came. With `raw` a message has as
well its first bytes (`raw`, in base64), how many it has (`length`), and how many came before it in its
direction since the trace began (`at`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from gateway.admin.control import ControlAnswer, Misunderstood, Verb
from gateway.app.switching import not_done
from gateway.sessions.holding import NotClear, NotDone, Within
from gateway.sessions.meant import Exports, Meant
from gateway.sessions.pausing import COMMAND_SECONDS
from gateway.sessions.service import Service
from gateway.sessions.tracing import NotTraced
from gateway.trace.decode import MOST_PAYLOAD_BYTES
from gateway.uri import UriError, check_name
from gateway.wire.handshake import shown

TRACE_SECONDS = 10.0
"""How long a trace lasts, if nobody says how long."""

MOST_TRACE_SECONDS = 3600.0
"""The longest: sessions without the pump cost more, and nobody reads for longer."""


def trace_of(service: Service) -> Verb:
    """Give the verb."""
    exports = Exports(service)

    async def trace(arguments: Mapping[str, Any]) -> ControlAnswer:
        export, who, seconds, payloads, raw = _understood(arguments)
        try:
            name = exports.single(Meant(export))
            if name is None:
                raise NotClear(f"{shown(export)} is a pattern, and a trace is of one export")
            await exports.refuse_if_not_there(name, Within(COMMAND_SECONDS))
            there = [each for each in service.running if each.name == name]
            failed = service.hub.failed
            begun = service.traces.begin(name, there, failed, who=who, payloads=payloads, raw=raw)
        except NotDone as error:
            return not_done(error)
        except NotTraced as error:
            return ControlAnswer(False, problems=(f"{shown(export)}: {error}",))

        async def stop() -> None:
            begun.stop()

        done = f"export {shown(name)} is traced for {seconds:g} s; sessions: {begun.sessions}"
        then = partial(begun.tell, seconds=seconds)
        return ControlAnswer(True, (done,), undo=stop, while_connected=True, then=then)

    return trace


def _understood(arguments: Mapping[str, Any]) -> tuple[str, str | None, float, int, bool]:
    """Take what was said. Raises `Misunderstood`."""
    unknown = arguments.keys() - {"export", "who", "seconds", "payloads", "raw"}
    if unknown:
        raise Misunderstood(f"unknown keys {', '.join(sorted(unknown))}")
    export, who = arguments.get("export"), arguments.get("who")
    if not isinstance(export, str):
        raise Misunderstood('"export" is an export\'s name')
    try:
        check_name(export, export)
    except UriError as error:
        raise Misunderstood(str(error)) from None
    if who is not None and not isinstance(who, str):
        raise Misunderstood('"who" is a pattern')
    seconds = arguments.get("seconds", TRACE_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise Misunderstood('"seconds" is a number')
    if not 0 < seconds <= MOST_TRACE_SECONDS:
        raise Misunderstood(f'"seconds" is more than 0, and up to {MOST_TRACE_SECONDS:g}')
    payloads = arguments.get("payloads", 0)
    if isinstance(payloads, bool) or not isinstance(payloads, int):
        raise Misunderstood('"payloads" is a number of bytes')
    if not 0 <= payloads <= MOST_PAYLOAD_BYTES:
        raise Misunderstood(f'"payloads" is from 0 to {MOST_PAYLOAD_BYTES}')
    raw = arguments.get("raw", False)
    if not isinstance(raw, bool):
        raise Misunderstood('"raw" is true or false')
    return export, who, float(seconds), payloads, raw
