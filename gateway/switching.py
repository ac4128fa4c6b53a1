"""The verbs `pause`, `resume` and `switch` of the control socket; they are done in `gateway.relay.pausing`.

    {"verb": "pause", "export": "disk", "within": 30, "for": 300}
    {"verb": "resume", "export": "disk"}
    {"verb": "switch", "export": "disk", "uri": "nbd://10.0.0.6", "within": 30, "close-first": true}

All but `export` may be left out.

The server of a URI is spoken to as the export's upstream is: its time limits, quirks and credentials. It has
TLS if that has: nobody should be able to lead a disk into the clear by a slip of the keyboard.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import Answer, Misunderstood, Verb
from gateway.config import Upstream
from gateway.net.dial import dial
from gateway.relay.pausing import LASTS_SECONDS, QUIET_SECONDS, NotDone, Pauses, Target
from gateway.relay.service import Service
from gateway.upstream.server import Server
from gateway.upstreams import mode_of
from gateway.uri import NbdUri, UriError, parse_nbd_uri

if TYPE_CHECKING:
    from gateway.tls.credentials import Session

MOST_WITHIN_SECONDS = 60.0
"""The longest that can be waited for quiet: clients wait as long, and so does who has asked."""

MOST_FOR_SECONDS = 3600.0
"""The longest pause. Nobody means one of a day."""


def verbs_of(service: Service, pauses: Pauses) -> dict[str, Verb]:
    """Give the verbs, by their names."""

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
            target = None if uri is None else await _target(service, export, uri)
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


async def _target(service: Service, export: str, uri: NbdUri) -> Target:
    """Give the server of a URI, which is spoken to as the export's upstream is. Raises `NotDone`."""
    route = service.config.route(export)
    place = None if route is None else service.place(export, route)
    if route is None or place is None:
        raise NotDone(f"there is no export {export!r}")
    settings = service.config.upstream[route.upstream]
    if uri.tls != settings.secure:
        wanted = "nbds" if settings.secure else "nbd"
        raise NotDone(f"upstream {route.upstream} is spoken to by {wanted}:, and {uri} is not")
    tls = await _credentials(uri, settings) if uri.tls else None
    server = Server(
        str(uri),
        partial(dial, uri),
        connect_seconds=settings.connect_seconds,
        negotiate_seconds=settings.negotiate_seconds,
        keepalive_seconds=settings.keepalive_seconds,
        user_timeout_seconds=settings.user_timeout_seconds,
        quirks=settings.quirks,
        trust_allocation=settings.trust_allocation,
        tls=tls,
        mode=mode_of(settings),
        # So that sessions over either, and those of the disk's other names, keep out of each other's way.
        disks=place.server.disks,
    )
    return Target(server, uri.export if uri.export_named else None)


async def _credentials(uri: NbdUri, settings: Upstream) -> Callable[[], Session]:
    from gateway.tls.errors import CredentialsError
    from gateway.tls.server_uri import wanted_of

    wanted = wanted_of(
        uri, certificates=settings.certificates, psk=settings.psk, psk_user=settings.psk_user
    )
    try:
        return (await trio.to_thread.run_sync(wanted.load)).session
    except CredentialsError as error:
        raise NotDone(f"{uri}: {error}") from None
