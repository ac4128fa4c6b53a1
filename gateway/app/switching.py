"""The verbs `pause`, `resume`, `switch` and `losses` of the control socket; they are done in
`gateway.sessions.pausing`.

    {"verb": "pause", "export": "disk", "within": 30, "for": 300, "accept-loss": false}
    {"verb": "pause", "export": "disk", "while-connected": true, "holder": "4f1c"}
    {"verb": "resume", "export": "disk"}
    {"verb": "resume", "export": "disk", "holder": "4f1c"}
    {"verb": "switch", "export": "disk", "uri": "nbd://10.0.0.6", "within": 30, "close-first": true}
    {"verb": "losses", "export": "disk", "forget": false}

Which exports are meant is said by `export`, a name, or a pattern with `"all": true`; or by `upstream`, for all
of one server (`gateway.sessions.meant`). Everything else may be left out; without an export, `losses` is about
all disks.

The server of a URI is spoken to as the export's upstream is, in all that its settings say; so it has TLS if
that has: nobody should be able to lead a disk into the clear by a slip of the keyboard. If exports are led to
that address already, by the configuration or by another switch, it is the same server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import ControlAnswer, Misunderstood, Verb, who_asks
from gateway.plural import plural
from gateway.sessions.holding import NotClear, NotDone, NotHere, Within
from gateway.sessions.meant import Exports, Meant
from gateway.sessions.pausing import COMMAND_SECONDS, LASTS_SECONDS, Pauses
from gateway.sessions.service import Service
from gateway.sessions.untold import MOST_DISKS, Called, in_words, losses_shown, lost_disks
from gateway.sessions.whereabouts import Target
from gateway.upstream.configured import StartError, switched_to
from gateway.uri import NbdUri, UriError, check_name, parse_nbd_uri
from gateway.wire.handshake import shown

if TYPE_CHECKING:
    from gateway.tls.keyring import Keyring  # costs nothing where there is no TLS

MOST_WITHIN_SECONDS = 60.0
"""The longest that can be waited for quiet: clients wait as long, and so does who has asked."""

MOST_FOR_SECONDS = 3600.0
"""The longest pause. Nobody means one of a day."""

NO_EXPORT = '"export" is an export\'s name'

NOTHING_LOST = "nothing is lost that somebody has still to be told of"


def verbs_of(
    service: Service, pauses: Pauses, keyring: Callable[[], Keyring | None]
) -> dict[str, Verb]:
    """Give the verbs, by their names. `keyring` gives the one that is in force."""
    verbs = _Verbs(service, pauses, keyring)
    by_name: dict[str, Verb] = {
        "pause": verbs.pause,
        "resume": verbs.resume,
        "switch": verbs.switch,
        "losses": verbs.losses,
    }
    return {name: partial(_answered, verb) for name, verb in by_name.items()}


async def _answered(verb: Verb, arguments: Mapping[str, Any]) -> ControlAnswer:
    """Do what a verb does, and say why if that is not done."""
    try:
        return await verb(arguments)
    except NotDone as error:
        return not_done(error)


def not_done(error: NotDone) -> ControlAnswer:
    """Give the answer to what was not done."""
    return ControlAnswer(
        False,
        problems=(str(error),),
        not_here=isinstance(error, NotHere),
        misunderstood=isinstance(error, NotClear),
    )


class _Verbs:
    """The verbs of one gateway. Each raises `Misunderstood` before anything is done, and `NotDone`."""

    def __init__(
        self, service: Service, pauses: Pauses, keyring: Callable[[], Keyring | None]
    ) -> None:
        self._service = service
        self._pauses = pauses
        self._keyring = keyring
        self._exports = Exports(service)

    async def pause(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """Hold exports."""
        meant = _meant(arguments, {"within", "for", "accept-loss", "while-connected", "holder"})
        seconds = _seconds(arguments, "within", COMMAND_SECONDS, MOST_WITHIN_SECONDS)
        lasts = _seconds(arguments, "for", LASTS_SECONDS, MOST_FOR_SECONDS)
        accept_loss = _truth(arguments, "accept-loss")
        while_connected = _truth(arguments, "while-connected")
        command = object()
        holder = _holder(arguments) or command

        within = Within(seconds)
        name = self._exports.single(meant)
        if name is None:
            names = await self._exports.there(meant, within)
        else:
            names = [name]
            await self._exports.refuse_if_not_there(name, within)
        done = await self._pauses.pause(
            names,
            within=within,
            lasts=lasts,
            accept_loss=accept_loss,
            by=holder,
            command=command,
            anew=while_connected,
            who=who_asks(),
        )
        undo = partial(self._pauses.undo, command)
        return ControlAnswer(True, tuple(done), undo=undo, while_connected=while_connected)

    async def resume(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """Have exports go on."""
        meant = _meant(arguments, {"holder"})
        holder = _holder(arguments)

        name = self._exports.single(meant)
        if holder is None or name is not None:
            names = self._exports.paused(meant)
        elif not (names := self._pauses.paused_by(holder)):
            raise NotHere("nothing is paused any more that this holder has paused")
        return ControlAnswer(True, tuple(await self._pauses.resume(names, holder)))

    async def switch(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """Lead exports to another server, or back."""
        meant = _meant(arguments, {"uri", "within", "close-first", "accept-loss"})
        seconds = _seconds(arguments, "within", COMMAND_SECONDS, MOST_WITHIN_SECONDS)
        close_first = _truth(arguments, "close-first")
        accept_loss = _truth(arguments, "accept-loss")
        uri = _uri(arguments)

        within = Within(seconds)
        name = self._exports.single(meant)
        if name is None:
            names = await self._exports.there(meant, within, at_home=uri is None)
        else:
            names = [name]
            self._exports.refuse_if_nobody_has_it(name)
        target = None
        if uri is not None:
            target = await _target(self._service, names, uri, self._keyring())
        notes: list[str] = []
        done = await self._pauses.switch(
            names,
            target,
            within=within,
            close_first=close_first,
            accept_loss=accept_loss,
            note=notes.append,
        )
        return ControlAnswer(True, tuple(done), tuple(notes))

    async def losses(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """Show what was lost and not everybody was told of, or forget what nobody was."""
        _know(arguments, {"export", "forget"})
        export = _export(arguments)
        forget = _truth(arguments, "forget")

        name = None if export is None else self._exports.single(Meant(export))
        if export is not None and name is None:
            raise NotClear(f"{shown(export)} is a pattern: without a name, all disks are shown")
        called = await Called.of_all(self._service)
        found = _losses(self._service, called, name, forget=forget)
        if name is not None and not found:
            await self._exports.refuse_if_not_there(name, Within(COMMAND_SECONDS))
        data = None if forget else losses_shown(self._service, called, name)
        return ControlAnswer(True, tuple(found or [NOTHING_LOST]), data=data)


def _losses(service: Service, names: Called, export: str | None, *, forget: bool) -> list[str]:
    """Say what was lost and not everybody was told of; `forget` what nobody was told of."""
    found: list[str] = []
    more = 0
    for called, disk in lost_disks(service, names, export):
        forgotten = forget and disk.losses.forget()
        left = disk.losses.untold()
        if forgotten:
            disk.is_left()
            still = "" if left is None else f"; still: {in_words(left)}"
            if len(found) < MOST_DISKS:
                found.append(f"{called}: what nobody was told of is forgotten{still}")
            else:
                more += 1
        elif left is not None and len(found) < MOST_DISKS:
            found.append(f"{called}: {in_words(left)}")
        elif left is not None:
            more += 1
    if more:
        found.append(f"{plural(more, 'disk')} more: nbd-gateway losses EXPORT")
    unnamed = 0 if export is not None else service.disks.unnamed
    if unnamed and forget:
        service.disks.forget_unnamed()
        found.append(f"{plural(unnamed, 'disk')} more of which only that was known: forgotten")
    elif unnamed:
        found.append(
            f"{plural(unnamed, 'disk')} more, of which it is known only that something was lost"
        )
    return found


# --- Arguments


def _know(arguments: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = arguments.keys() - known
    if unknown:
        raise Misunderstood(f"unknown keys {', '.join(sorted(unknown))}")


def _export(arguments: Mapping[str, Any]) -> str | None:
    """Give the name or pattern that is meant, if one is."""
    export = arguments.get("export")
    if export is None:
        return None
    if not isinstance(export, str):
        raise Misunderstood(NO_EXPORT)
    try:
        return check_name(export, export)
    except UriError as error:
        raise Misunderstood(str(error)) from None


def _meant(arguments: Mapping[str, Any], others: Collection[str]) -> Meant:
    _know(arguments, {"export", "all", "upstream", *others})
    export, upstream = arguments.get("export"), arguments.get("upstream")
    if upstream is None:
        export = _export(arguments)
        if export is None:
            raise Misunderstood(NO_EXPORT)
    elif export is not None or not isinstance(upstream, str):
        raise Misunderstood('"upstream" is the name of one, in place of "export"')
    return Meant(export, upstream, _truth(arguments, "all"))


def _holder(arguments: Mapping[str, Any]) -> str | None:
    """Give the word by which who has paused something is known again."""
    holder = arguments.get("holder")
    if holder is not None and (not isinstance(holder, str) or not holder):
        raise Misunderstood('"holder" is a word by which who pauses is known again')
    return holder


def _truth(arguments: Mapping[str, Any], key: str) -> bool:
    said = arguments.get(key, False)
    if not isinstance(said, bool):
        raise Misunderstood(f'"{key}" is true or false')
    return said


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
    service: Service, exports: Collection[str], uri: NbdUri, keyring: Keyring | None = None
) -> Target:
    """Give the server of a URI, which is spoken to as the exports' upstream is. Raises `NotDone`."""
    upstreams: set[str] = set()
    for export in exports:
        route = service.config.route(export)
        if route is None or service.location(export, route) is None:
            raise NotHere(f"there is no export {shown(export)}")
        upstreams.add(route.upstream)
    if len(upstreams) > 1:
        raise NotDone(
            f"they have several upstreams in the configuration ({', '.join(sorted(upstreams))}), and a server"
            " is spoken to as one of them says: switch those of one after the other"
        )
    if len(exports) > 1 and uri.export_named:
        raise NotDone(f"{uri} is one export, and {len(exports)} are to go there")
    [upstream] = upstreams
    settings = service.config.upstream[upstream]
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
