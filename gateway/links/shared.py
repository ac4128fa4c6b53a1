"""Begins the trunks that clients have. Some trunks are shared: every client that asks about an export, or opens
it, gets a share of its one trunk. Others belong to one client alone, where each client is to have several
links.

When shared links are made, they select every meta context that the server lists. Each client chooses among
these. A shared trunk begins with the first client who asks, and ends with the last one who has a share of it.
It also ends when the export is switched, or its links are made anew (`Trunks.exchange`).

There must never be two trunks before one disk. One would not know what the other has not flushed; and what it
writes again after a loss, it would write over newer data that came by the other. So a disk keeps the trunk that
it has, also when a reload has changed how its server is spoken to, or when another upstream leads to it.

A trunk of one link may begin with a link that was made ahead (`gateway.upstream.warm`), for nobody has used
that yet. A link that was lost, or has to be made anew, is never replaced by such a link.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import trio

from gateway.links.disk import Disk
from gateway.links.trunk import Trunk
from gateway.links.uplink import OwnLink, Share, Uplink
from gateway.losses.rule import Debt
from gateway.losses.survival import Doubt
from gateway.protocol.errors import Refusal
from gateway.upstream.allowance import Allowance
from gateway.upstream.coherence import check_required
from gateway.upstream.errors import Silent, Unreachable
from gateway.upstream.ladder import Rung
from gateway.upstream.link import Link, Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.server import Server
from gateway.wire import limits
from gateway.wire.constants import Rep
from gateway.wire.handshake import MetaContext

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.hub.hub import Hub


class AskedOtherwise(Exception):
    """Clients of a disk share links, and it was asked as if they did not; or the other way round. Which of both
    it is may have changed meanwhile.
    """


class Trunks:
    """Begins the trunks of all exports. A shared one belongs to its disk (`Disk.trunk`)."""

    def __init__(self, hub: Hub, log: FilteringBoundLogger) -> None:
        self._hub = hub
        self._log = log
        self._silent: WeakKeyDictionary[Disk, tuple[float, str]] = WeakKeyDictionary()
        """When the server of a disk was found silent, and what was said of it."""

    async def join(
        self, disk: Disk, server: Server, name: str, allowance: Allowance | None = None
    ) -> Share:
        """Give a share of the trunk of this disk, which is a server's export. If there is no trunk, begin one
        within what is left of `allowance`. A client that has waited while another one met a silent server is
        told the same, for it would only wait once more. Raises `Refusal`; and `AskedOtherwise` where a trunk
        would have to be begun for a server whose clients have links of their own.
        """
        came = trio.current_time()
        async with disk.turn:
            trunk = disk.trunk
            if trunk is None:
                if not server.mode.wanted.shared:
                    raise AskedOtherwise
                _check_that_it_writes_alone(disk, server, ())
                silent_at, text = self._silent.get(disk, (-math.inf, ""))
                if silent_at > came:
                    raise Silent(text)
                try:
                    trunk = await self._begun(disk, server, name, warm=True, allowance=allowance)
                except Silent as silent:
                    self._silent[disk] = trio.current_time(), silent.text
                    raise
                disk.trunk = trunk
            _check_credentials(server, trunk.server)
            return Share(trunk)

    @asynccontextmanager
    async def exchange(
        self,
        disk: Disk,
        server: Server,
        name: str,
        leaving: Collection[Trunk],
        sessions: Collection[Debt],
    ) -> AsyncIterator[Trunk]:
        """Give the trunk of this disk to `sessions` that leave other trunks; nobody else joins it until the
        block ends. It is the trunk that the disk has. If that is one of those to be left, it is a new one, and
        the caller gives it to the disk. A trunk that nobody has joined by the end of the block ends with the
        block. Raises `Refusal`.
        """
        async with disk.turn:
            trunk = disk.trunk
            if trunk is None or trunk in leaving:
                _check_that_it_writes_alone(disk, server, sessions)
                # Nobody is promised less than over the trunks that are left.
                rungs = [each.first.rung for each in leaving if each.disk is disk]
                lowest = min(rungs, default=Rung.EXPORT_NAME)
                trunk = await self._begun(disk, server, name, warm=False, lowest=lowest)
            _check_credentials(server, trunk.server)
            ours = Share(trunk)
            try:
                yield trunk
            finally:
                ours.close()

    async def _begun(
        self,
        disk: Disk,
        server: Server,
        name: str,
        *,
        warm: bool,
        lowest: Rung = Rung.EXPORT_NAME,
        allowance: Allowance | None = None,
    ) -> Trunk:
        negotiation = Negotiation(
            server,
            warm=warm and server.mode.wanted.count == 1,
            lowest=lowest,
            allowance=allowance,
        )
        allowance = negotiation.allowance
        try:
            terms = await shared_terms(negotiation, name)
            link = await negotiation.go(terms)
        finally:
            await negotiation.aclose()
        return await self._begun_with(link, server, terms, disk, allowance)

    async def uplink(
        self,
        server: Server,
        disk: Callable[[str], Disk],
        terms: Terms,
        link: Link,
        allowance: Allowance | None = None,
    ) -> Uplink:
        """Give the uplink that a client's own link comes to: the link alone, or a share of a trunk that begins
        with it, and whose other links may take what is left of `allowance`. `disk` gives the disk of a name
        there. Raises `Refusal`, and then the link is closed.
        """
        decision = server.decide([link.export], link.quirks)
        if server.mode.bundled(decision.count):
            trunk = await self._begun_with(link, server, terms, disk(terms.name), allowance)
            return Share(trunk)
        try:
            if server.mode.required:
                check_required(server.mode.wanted, decision)
        except Refusal:
            link.close()
            raise
        if decision.reason and server.told.is_news(terms.name, decision.reason):
            self._log.warning(decision.reason, upstream=server.name, export=terms.name)
        return OwnLink(server, link)

    async def _begun_with(
        self,
        link: Link,
        server: Server,
        terms: Terms,
        disk: Disk,
        allowance: Allowance | None,
    ) -> Trunk:
        """Begin a trunk with its first link, which belongs to the trunk from now on. Links that have to be made
        before it begins may take what is left of `allowance`. Raises `Refusal`.
        """
        trunk = Trunk(server, terms, link, self._hub, disk, self._log)
        try:
            if server.mode.required:
                await trunk.agree(allowance)
        except BaseException:
            trunk.abandon()
            raise
        trunk.start()
        return trunk


def _check_credentials(server: Server, there: Server) -> None:
    """Refuse clients of `server` the connections that a disk has already, if those were made for another
    upstream (`there`) with other credentials. Otherwise what has to go over TLS could go in the clear, or under
    the name that another upstream proves to the server. For the same upstream it is no refusal: a reload may
    have changed its credentials, and they are used when its connections are made anew. Raises `Refusal`.
    """
    ours, theirs = server.recipe, there.recipe
    if ours.upstream == theirs.upstream:
        return
    if ours.credentials != theirs.credentials:
        raise Refusal(
            Rep.ERR_POLICY,
            f"clients of upstream {theirs.upstream!r} share connections to this disk that were made with"
            f" other credentials than those of {ours.upstream!r}: there cannot be two sets of them",
        )


def _check_that_it_writes_alone(disk: Disk, server: Server, sessions: Collection[Debt]) -> None:
    """If writes are made again after a loss, nobody but `sessions` may write to the disk. Raises `Refusal`."""
    replays = server.mode.survival.unflushed is Doubt.REPLAY
    if replays and disk.losses.others_write(sessions):
        raise Refusal(
            Rep.ERR_POLICY,
            f'clients have connections of their own to this disk, and with unflushed = "replay" upstream'
            f" {server.name!r} has to write alone: they have to leave first",
        )


async def shared_terms(negotiation: Negotiation, name: str) -> Terms:
    """Give the terms on which shared links are opened: as much as any client might want."""
    terms = Terms(name, structured=True, extended=True)
    listed: tuple[MetaContext, ...] = ()
    try:
        listed = await negotiation.list_contexts(terms, ())
    except Unreachable:
        raise  # else no client would ever be given contexts over these links, though the server may have some
    except Refusal:
        pass  # why it refuses is found out when the export is opened
    queries = tuple(context.name for context in listed)[: limits.MAX_QUERIES]
    return replace(terms, queries=queries) if queries else terms
