"""`Server`: one client's whole life, from the greeting to the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import trio

from gateway.embedded import faults as no_faults
from gateway.embedded.dirty import TrackedDisk
from gateway.embedded.disk import ServedDisk
from gateway.embedded.faults import Faults
from gateway.embedded.incoherent import IncoherentDisk
from gateway.embedded.manners import Manners, OptionCount
from gateway.embedded.offset import OffsetDisk
from gateway.embedded.overlay import OverlayDisk
from gateway.embedded.peer import Cut, FaultyStream, PeerGone, Stalled
from gateway.embedded.personality import PLAIN, Personality
from gateway.embedded.session import Negotiated, Transmission
from gateway.protocol.errors import Hangup, Refusal
from gateway.protocol.export import Offer, longest_payload, offered_block_sizes
from gateway.protocol.server_role import (
    Aborted,
    ContextsAsked,
    Description,
    Event,
    ExportAsked,
    ExportNameChosen,
    ListAsked,
    Tls,
    TlsAsked,
)
from gateway.wire import handshake
from gateway.wire.constants import BASE_ALLOCATION, Info, Rep
from gateway.wire.errors import WireError
from gateway.wire.handshake import ListedExport, MetaContext
from gateway.wire.limits import KIB

if TYPE_CHECKING:
    from gateway.embedded.secure import Choose  # costs nothing where there is no TLS

HANDSHAKE_SECONDS = 10
"""How long a client may take to choose its export, as qemu allows since CVE-2024-7409."""

NEGOTIATION_BYTES = 16 * KIB
"""What one receive takes during negotiation."""


class Server:
    """An NBD server of `exports`, by name; "" is the default export.

    `faults` are those of every connection, or give those of the nth connection (from 0). `log` is told in
    a sentence why a connection ended that did not end with DISC or ABORT. `tls` gives the session of a client
    by what it has sent so far (as `ServerCredentials.session`); then nothing is told before TLS.
    """

    def __init__(
        self,
        exports: Mapping[str, ServedDisk],
        personality: Personality = PLAIN,
        *,
        faults: Faults | Callable[[int], Faults] = no_faults.NONE,
        descriptions: Mapping[str, str] | None = None,
        handshake_seconds: float = HANDSHAKE_SECONDS,
        log: Callable[[str], None] | None = None,
        tls: Choose | None = None,
    ) -> None:
        self.exports = exports
        self.personality = personality
        self.connections = 0
        """Connections so far, those that have ended included."""
        self.goes = False
        """It goes in good order, as nbdkit does after SIGTERM: what is under way is finished, what still comes
        is answered ESHUTDOWN, and ERR_SHUTDOWN in the option phase."""
        self.tls = tls
        self._faults = faults
        self._descriptions = descriptions or {}
        self._handshake_seconds = handshake_seconds
        self._log = log or _say_nothing
        self._places = trio.CapacityLimiter(personality.clients_at_once)
        self._tracked: dict[str, tuple[ServedDisk, TrackedDisk]] = {}

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client until it has gone, and close the stream. Nothing that a peer does raises."""
        number = self.connections
        self.connections += 1
        faults = self._faults(number) if callable(self._faults) else self._faults
        peer = FaultyStream(stream, faults)
        async with stream:
            try:
                async with self._places:
                    try:
                        await self._converse(peer, faults)
                    except Stalled:
                        await peer.swallow()
            except (PeerGone, WireError, Hangup) as end:
                self._log(f"connection {number}: {end}")
            except Cut:
                self._log(f"connection {number}: cut")

    async def _converse(self, peer: FaultyStream, faults: Faults) -> None:
        negotiation = _Negotiation(self, peer, faults.cut_at_option)
        with trio.move_on_after(self._handshake_seconds) as deadline:
            opened = await negotiation.run()
        if deadline.cancelled_caught:
            raise Hangup(f"no export was opened within {self._handshake_seconds:g} s")
        if opened is None:
            return
        peer.begin_transmission()
        cache = None
        if self.personality.own_disks:
            opened.disk = OverlayDisk(opened.disk)
        if self.personality.incoherent_connections:
            opened.disk = cache = IncoherentDisk(opened.disk)
        try:
            await Transmission(peer, opened, self.personality, faults, goes=lambda: self.goes).run()
        finally:
            if cache is not None and not cache.read_only:
                with trio.CancelScope(shield=True):
                    await self._write_through(cache)

    async def _write_through(self, cache: IncoherentDisk) -> None:
        try:
            await cache.flush()
        except OSError as error:
            self._log(f"what a connection left unflushed is lost: {error}")

    def opened(
        self,
        name: str,
        *,
        structured: bool,
        extended: bool = False,
        contexts: tuple[MetaContext, ...] = (),
    ) -> Negotiated:
        """Give what a session of an export works on; KeyError if there is no such export."""
        personality = self.personality
        image = self.exports[name]
        disk: ServedDisk = image
        if personality.offset_bytes:
            disk = OffsetDisk(image, personality.offset_bytes)
        told = offered_block_sizes(personality.block_sizes)
        minimum = personality.enforced_minimum or told.minimum
        flags = personality.flags(disk, structured) | personality.takes_unoffered
        offer = Offer(
            personality.told_size(image),
            flags | (personality.extended_flags if extended else 0),
            told,
            structured,
            contexts,
            personality.enforced_maximum or longest_payload(personality.block_sizes),
            minimum,
            extended,
        )
        if all(context == BASE_ALLOCATION for context in personality.contexts):
            return Negotiated(disk, offer)
        if name not in self._tracked or self._tracked[name][0] is not image:
            self._tracked[name] = (image, TrackedDisk(disk))
        tracked = self._tracked[name][1]
        return Negotiated(tracked, offer, tracked.dirty)

    def describe(
        self, name: str, event: ExportAsked | None, *, structured: bool, extended_flags: int = 0
    ) -> Description:
        """Give what a client is told of an export; `event` is None for EXPORT_NAME. `extended_flags` are
        those that it has only with extended headers.
        """
        personality = self.personality
        disk = self.exports[name]
        size = personality.told_size(disk)
        sizes = None
        if event is not None:
            asked = Info.BLOCK_SIZE in event.wanted
            sizes = personality.told_block_sizes(go=event.go, asked=asked)
            if personality.info_size_zero and not event.go:
                size = 0
        return Description(
            size,
            personality.flags(disk, structured) | extended_flags,
            offered_block_sizes(sizes),
            name if personality.tells_names else None,
            self._descriptions.get(name),
        )

    def listed(self) -> list[ListedExport]:
        """Give what LIST is answered."""
        return [ListedExport(name, self._descriptions.get(name, "")) for name in self.exports]

    def oldstyle_export(self) -> str:
        """Give the name of the export that an oldstyle client gets."""
        return "" if "" in self.exports else next(iter(self.exports))


class _Negotiation:
    """One connection until its export is open."""

    def __init__(self, server: Server, peer: FaultyStream, cut_at_option: int | None) -> None:
        self._server = server
        self._cut_at_option = cut_at_option
        self._most_options = server.personality.most_options
        self._options = OptionCount()
        self._personality = server.personality
        self._peer = peer
        self._manners = Manners(
            server.personality, tls=Tls.OFF if server.tls is None else Tls.REQUIRE
        )
        self._core = self._manners.core

    async def run(self) -> Negotiated | None:
        """Negotiate; give what was opened, or None if the client went with ABORT."""
        if self._personality.oldstyle:
            return await self._oldstyle()
        buffer = memoryview(bytearray(NEGOTIATION_BYTES))
        while True:
            self._core.shutting_down = self._server.goes
            try:
                event = self._manners.next_event()
            finally:  # also what was said before a hang-up
                await self._send()
            if event is None:
                count = await self._peer.receive_into(buffer)
                self._options.take(bytes(buffer[:count]))
                if self._cut_at_option is not None and self._options.count >= self._cut_at_option:
                    raise Cut
                if self._most_options is not None and self._options.count > self._most_options:
                    raise Cut
                self._manners.receive(bytes(buffer[:count]))
                continue
            if isinstance(event, Aborted):
                return None
            if isinstance(event, TlsAsked):
                await self._start_tls()
                continue
            try:
                opened = self._answer(event)
            except Refusal as refusal:
                self._core.refuse(refusal)
                opened = None
            await self._send()
            if opened is not None:
                opened.received = self._core.trailing_data
                return opened

    async def _start_tls(self) -> None:
        assert self._server.tls is not None  # else it is not supported
        secured = self._core.answer_starttls()
        await self._send()
        await self._peer.secure(self._server.tls)
        self._core = self._manners.core = secured

    async def _send(self) -> None:
        data = self._manners.data_to_send()
        if data:
            await self._peer.send([data])

    async def _oldstyle(self) -> Negotiated:
        server = self._server
        name = server.oldstyle_export()
        export = server.describe(name, None, structured=False)
        await self._peer.send([handshake.encode_oldstyle_greeting(export.size, export.flags)])
        return server.opened(name, structured=False)

    def _answer(self, event: Event) -> Negotiated | None:
        """Answer an event; give what it opened. Raises `Refusal`, or `Hangup`."""
        match event:
            case ListAsked():
                exports = self._server.listed()
                if self._personality.most_options is not None and self._most_options is not None:
                    self._most_options += self._personality.most_options * len(exports)
                self._core.answer_list(exports)
            case ContextsAsked():
                self._check_name(event.name)
                self._core.answer_contexts(self._contexts(event))
            case ExportAsked():
                return self._answer_export(event)
            case ExportNameChosen(name):
                self._check_name(name)
                structured = self._core.structured
                export = self._server.describe(name, None, structured=structured)
                self._manners.answer_export_name(export)
                return self._opened(name)
            case Aborted():
                pass
        return None

    def _answer_export(self, event: ExportAsked) -> Negotiated | None:
        self._check_name(event.name)
        core = self._core
        # BLOCK_STATUS_PAYLOAD: always in INFO; in GO "only if contexts were selected".
        tells = core.extended and (not event.go or core.selected_contexts(event.name))
        export = self._server.describe(
            event.name,
            event,
            structured=core.structured,
            extended_flags=self._personality.extended_flags if tells else 0,
        )
        asked = Info.BLOCK_SIZE in event.wanted
        if self._personality.insists_on_block_sizes and not event.go and not asked:
            text = "request INFO_BLOCK_SIZE to use this export"
            self._core.refuse(Refusal(Rep.ERR_BLOCK_SIZE_REQD, text), export)
            return None
        self._core.answer_export(export)
        return self._opened(event.name) if event.go else None

    def _opened(self, name: str) -> Negotiated:
        return self._server.opened(
            name,
            structured=self._core.structured,
            extended=self._core.extended,
            contexts=self._core.selected_contexts(name),
        )

    def _check_name(self, name: str) -> None:
        longest = self._personality.longest_name_bytes
        if len(name.encode()) > longest:
            raise Refusal(Rep.ERR_INVALID, f"an export name has at most {longest} bytes")
        if name not in self._server.exports:
            raise Refusal(Rep.ERR_UNKNOWN, f"there is no export {handshake.shown(name)}")

    def _contexts(self, asked: ContextsAsked) -> list[MetaContext]:
        """Give the contexts that a query stands for: by name, and in a LIST by what names begin with."""
        there = self._personality.contexts
        if asked.select:
            chosen = [name for name in there if name in asked.queries]
        elif not asked.queries:
            unasked = self._personality.contexts_unasked
            chosen = list(there if unasked is None else unasked)
        else:
            chosen = [name for name in there if any(_matches(q, name) for q in asked.queries)]
        # "the server SHOULD set the id to 0" in a LIST.
        return [MetaContext(there.index(name) if asked.select else 0, name) for name in chosen]


def _matches(query: str, name: str) -> bool:
    return query == name or (query.endswith(":") and name.startswith(query))


def _say_nothing(_text: str) -> None:
    pass
