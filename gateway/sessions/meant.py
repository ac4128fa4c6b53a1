"""Which exports an operator means: by a name, by a pattern, or all of one server.

A name means that export, if there is a client that can have it: the configuration leads it somewhere, a rule
lets somebody have it, and the server has it. Where names pass through, nobody but the server knows which there
are, so it is asked, as a client would ask; a slip of the keyboard would hold nobody otherwise, and be told
"done". A server that does not answer is no reason to let an export alone that the configuration spells out.

A pattern means the names that it matches (`vm[*]` is the name `vm*`, as in `[[export]]`): of those that the
configuration spells out, that the servers list, and that are in use. It may be a slip, or the name of an
`[[export]]` of which somebody takes one name for the whole, so it has to be said that all are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

import trio

from gateway.config.exports import exact_name
from gateway.protocol.errors import Refusal
from gateway.sessions.holding import NotClear, NotDone, NotHere, Within
from gateway.sessions.service import Service
from gateway.upstream.link import Terms
from gateway.upstream.listing import LIST_SECONDS, exports_of, visible_exports
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport, shown

ASK_SECONDS = 5.0
"""How long a server may take to say whether it has an export. One that is in order says it at once."""

MOST_NAMED = 20
"""Names that a pattern is said to stand for: as many as one looks through."""


@dataclass(frozen=True, slots=True)
class Meant:
    """What an operator has said."""

    export: str | None = None
    """A name or a pattern; None: all exports of `upstream`."""
    upstream: str | None = None
    all: bool = False
    """With a pattern: all that it matches."""


class Exports:
    """The exports that there are."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def single(self, meant: Meant) -> str | None:
        """Give the name that is meant, if it is one and no pattern."""
        text = meant.export
        if text is None or text in self._in_use() or text in self._spelled_out():
            return text
        return exact_name(text)

    def paused(self, meant: Meant) -> list[str]:
        """Give what is meant of the exports that are paused. Raises `NotDone`."""
        name = self.single(meant)
        if name is not None:
            return [name]
        return self._chosen(meant, list(self._service.paused), "that is paused", at_home=True)

    async def there(self, meant: Meant, within: Within, *, at_home: bool = False) -> list[str]:
        """Give what is meant of all exports that there are. `at_home`: those that the configuration leads to
        `upstream` count as well, wherever they are now. Raises `NotDone`.
        """
        there = await self._listed(meant.upstream, within)
        there |= {*self._service.config.issued}  # they are in no list
        granted = {name for name in there if self._service.access.why_nobody(name) is None}
        routed = {name for name in self._in_use() if self._service.config.route(name)}
        return self._chosen(meant, granted | routed, "that there is now", at_home=at_home)

    def refuse_if_nobody_has_it(self, name: str) -> None:
        """Let only names pass that clients may have, as the configuration says. Raises `NotDone`."""
        service = self._service
        route = service.config.route(name)
        if route is None or service.location(name, route) is None:
            raise NotHere(f"there is no export {shown(name)}")
        if name in self._in_use():
            return  # whatever the rules say since
        if (why := service.access.why_nobody(name)) is not None:
            raise NotHere(f"nobody can have export {shown(name)}: {why}")

    async def refuse_if_not_there(self, name: str, within: Within) -> None:
        """Let only names pass that clients can have, as the server says as well. Raises `NotDone`."""
        self.refuse_if_nobody_has_it(name)
        if name in self._in_use():
            return
        service, route = self._service, self._service.config.route(name)
        location = None if route is None else service.location(name, route)
        assert location is not None  # as was just seen
        negotiation = service.negotiation(location)
        try:
            with trio.move_on_after(min(ASK_SECONDS, within.left / 2)):
                await negotiation.describe(Terms(location.name, structured=True, extended=True))
                return
            why = location.server.why_down or "it has not answered in time"
        except Refusal as refusal:
            if refusal.reply == Rep.ERR_UNKNOWN:
                text = f"{location.server.name} has no export {shown(location.name)}"
                raise NotHere(f"nobody can have export {shown(name)}: {text}: {refusal}") from None
            why = str(refusal)
        finally:
            await negotiation.aclose()
        if name not in self._spelled_out():
            raise NotDone(f"whether there is an export {shown(name)} is not known: {why}")

    # --- What there is

    def _in_use(self) -> set[str]:
        """Give the names that clients have, and those that were paused or switched before."""
        service = self._service
        running = {each.name for each in service.running}
        return (
            running
            | {each.grant.name for each in service.opening}
            | {*service.paused, *service.switched}
            | {*service.named_elsewhere()}
        )

    def _spelled_out(self) -> set[str]:
        config = self._service.config
        return {*config.exact_names, *config.issued}

    async def _listed(self, upstream: str | None, within: Within) -> set[str]:
        """Give what the servers list, and the configuration spells out. Raises `NotDone`."""
        service = self._service
        config = service.config
        told: dict[str, list[ListedExport] | None] = dict.fromkeys(
            rule.upstream for rule in config.exports
        )
        asked = [each for each in told if upstream is None or each in self._at(upstream)]

        async def ask(name: str) -> None:
            # Of a server that lists nothing, what is in use is known, and nobody else is there to be held.
            with suppress(Refusal):
                told[name] = await (service.asks_for_list or exports_of)(service.servers[name])

        with trio.move_on_after(min(LIST_SECONDS, within.left / 2)):
            async with trio.open_nursery() as nursery:
                for name in asked:
                    nursery.start_soon(ask, name)
        return {each.name for each in visible_exports(config, told, secure=True)}

    def _at(self, upstream: str) -> set[str]:
        """Give the upstreams that lead to the same server as one does. Raises `NotDone`."""
        servers = self._service.servers
        if upstream not in servers:
            known = ", ".join(servers)
            raise NotHere(f"there is no upstream {shown(upstream)}, only {known}")
        disks = servers[upstream].disks
        return {name for name, server in servers.items() if server.disks == disks}

    # --- What is meant of it

    def _chosen(
        self, meant: Meant, names: Collection[str], which: str, *, at_home: bool
    ) -> list[str]:
        if meant.upstream is not None:
            chosen = sorted(filter(self._of(meant.upstream, at_home=at_home), names))
            if not chosen:
                raise NotHere(f"upstream {shown(meant.upstream)} has no export {which}")
            return chosen
        pattern = meant.export
        assert pattern is not None  # guaranteed by who reads what was said
        chosen = sorted(name for name in names if fnmatchcase(name, pattern))
        if not chosen:
            raise NotHere(f"{shown(pattern)} is a pattern, and matches no export {which}")
        if not meant.all:
            named = ", ".join(map(shown, chosen[:MOST_NAMED]))
            more = f" and {len(chosen) - MOST_NAMED} more" if len(chosen) > MOST_NAMED else ""
            raise NotClear(
                f"{shown(pattern)} is a pattern, for {named}{more}: name one of them, or say that all are meant"
                " (--all)"
            )
        return chosen

    def _of(self, upstream: str, *, at_home: bool) -> Callable[[str], bool]:
        service, home = self._service, self._at(upstream)
        disks = service.servers[upstream].disks

        def is_there(name: str) -> bool:
            route = service.config.route(name)
            location = None if route is None else service.location(name, route)
            if route is None or location is None:
                return False
            return location.server.disks == disks or (at_home and route.upstream in home)

        return is_there
