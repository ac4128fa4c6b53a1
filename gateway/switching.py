"""The verbs `pause`, `resume` and `switch` of the control socket; they are done in `gateway.relay.pausing`.

    {"verb": "pause", "export": "disk", "within": 30, "for": 300}
    {"verb": "resume", "export": "disk"}
    {"verb": "switch", "export": "disk", "uri": "nbd://10.0.0.6", "within": 30, "close-first": true}

All but `export` may be left out.

The server of a URI is spoken to as the export's upstream is, in all that its settings say; so it has TLS if
that has: nobody should be able to lead a disk into the clear by a slip of the keyboard. If exports are led to
that address already, by the configuration or by another switch, it is the same server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import Answer, Misunderstood, Verb
from gateway.relay.pausing import LASTS_SECONDS, QUIET_SECONDS, NotDone, Pauses, Target
from gateway.relay.service import Service
from gateway.upstreams import StartError, switched_to
from gateway.uri import NbdUri, UriError, parse_nbd_uri

if TYPE_CHECKING:
    from gateway.keyring import Keyring  # costs nothing where there is no TLS

MOST_WITHIN_SECONDS = 60.0
"""The longest that can be waited for quiet: clients wait as long, and so does who has asked."""

MOST_FOR_SECONDS = 3600.0
"""The longest pause. Nobody means one of a day."""


def verbs_of(
    service: Service, pauses: Pauses, keyring: Callable[[], Keyring | None]
) -> dict[str, Verb]:
    """Give the verbs, by their names. `keyring` gives the one that is in force."""

    async def pause(arguments: Mapping[str, Any]) -> Answer:
        export = _export(arguments, {"within", "for"})
        within = _seconds(arguments, "within", QUIET_SECONDS, MOST_WITHIN_SECONDS)
        lasts = _seconds(arguments, "for", LASTS_SECONDS, MOST_FOR_SECONDS)
        return await _done(lambda: pauses.pause(export, seconds=within, lasts=lasts))

    async def resume(arguments: Mapping[str, Any]) -> Answer:
        export = _export(arguments, set())
        return await _done(lambda: pauses.resume(export))

    async def switch(arguments: Mapping[str, Any]) -> Answer:
        export = _export(arguments, {"uri", "within", "close-first"})
        within = _seconds(arguments, "within", QUIET_SECONDS, MOST_WITHIN_SECONDS)
        close_first = arguments.get("close-first", False)
        if not isinstance(close_first, bool):
            raise Misunderstood('"close-first" is true or false')
        uri = _uri(arguments)

        async def switched() -> list[str]:
            target = None if uri is None else await _target(service, export, uri, keyring())
            return await pauses.switch(export, target, seconds=within, close_first=close_first)

        return await _done(switched)

    return {"pause": pause, "resume": resume, "switch": switch}


async def _done(do: Callable[[], Awaitable[list[str]]]) -> Answer:
    try:
        return Answer(True, tuple(await do()))
    except NotDone as error:
        return Answer(False, problems=(str(error),))


# --- Arguments


def _export(arguments: Mapping[str, Any], others: Collection[str]) -> str:
    unknown = arguments.keys() - {"export", *others}
    if unknown:
        raise Misunderstood(f"unknown keys {', '.join(sorted(unknown))}")
    export = arguments.get("export")
    if not isinstance(export, str):
        raise Misunderstood('"export" is an export\'s name')
    return export


def _seconds(arguments: Mapping[str, Any], key: str, default: float, most: float) -> float:
    seconds = arguments.get(key, default)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= most:
        raise Misunderstood(f'"{key}" is a number of seconds, more than 0 and up to {most:g}')
    return float(seconds)


def _uri(arguments: Mapping[str, Any]) -> NbdUri | None:
    text = arguments.get("uri")
    if text is None:
        return None
    if not isinstance(text, str):
        raise Misunderstood('"uri" is an NBD URI')
    try:
        return parse_nbd_uri(text)
    except UriError as error:
        raise Misunderstood(str(error)) from None


# --- The server


async def _target(
    service: Service, export: str, uri: NbdUri, keyring: Keyring | None = None
) -> Target:
    """Give the server of a URI, which is spoken to as the export's upstream is. Raises `NotDone`."""
    route = service.config.route(export)
    if route is None or service.place(export, route) is None:
        raise NotDone(f"there is no export {export!r}")
    upstream, settings = route.upstream, service.config.upstream[route.upstream]
    if uri.tls != settings.secure:
        wanted = "nbds" if settings.secure else "nbd"
        raise NotDone(f"upstream {upstream} is spoken to by {wanted}:, and {uri} is not")

    def made() -> Target:
        server = switched_to(uri, upstream, settings, list(service.led_to), keyring)
        return Target(server, uri.export if uri.export_named else None)

    try:
        return await trio.to_thread.run_sync(made) if uri.tls else made()
    except StartError as error:
        raise NotDone(str(error)) from None
