"""What a server is, and what is wrong with it. We ask in its option phase, by INFO and LIST, and leave by
ABORT.

A server that takes one client and then ends (qemu-nbd without -t) survives that. If a server knows no INFO, or
its exports are to be read (`transmit`), we have to open an export: a server for one client has ended after
that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gateway.config import Connections
from gateway.inspect.conform.client import Broken, RawClient
from gateway.inspect.instead import instead, listed_by
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, offer, view_of
from gateway.protocol.introduction import QUERY, version_in
from gateway.quirks import Evidence, Quirk, catalogue
from gateway.quirks.fingerprint import GATEWAY, Program, identify
from gateway.upstream.coherence import decide
from gateway.upstream.configured import server_of
from gateway.upstream.errors import Rejected, TlsRequired, Unreachable
from gateway.upstream.link import Terms
from gateway.upstream.listing import exports_of
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.news import ForClientsAlone, News
from gateway.upstream.server import Server
from gateway.uri import Target, export_of
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import ListedExport

READ_PLACES = 16
READ_BYTES = 4096
"""How much we read at each of so many places: enough to meet data and holes of most disks in a moment."""

READ_SECONDS = 10
"""How long a READ may take: a disk may have to wake up."""

MAX_PROBED = 64
"""How many exports we ask about: a server may list thousands."""


SEVERAL = Connections(count=4)
"""How many connections "several" are: as many as nbdcopy opens."""

ALL_OF_THEM = f"{SEVERAL} for each client, if all of them say the same"


class CannotProbe(Exception):
    """The server cannot be asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of READs at a few places."""

    places: int
    """How many places were read."""
    wrong: tuple[str, ...]
    """What was wrong there, in sentences."""


@dataclass(frozen=True, slots=True)
class Probed:
    """One export, as the server tells it and as a client would see it through the gateway."""

    name: str
    evidence: Evidence
    """What the server said, as it said it."""
    export: Export
    """The export after the quirks have repaired it."""
    extended: bool
    contexts: tuple[str, ...]
    through: int
    """Transmission flags that a client with extended headers is told through the gateway."""
    program: Program
    quirks: tuple[Quirk, ...]
    notes: tuple[str, ...] = ()
    """What cannot be mended, and what else the server's owner should know."""
    reading: Reading | None = None
    """None: it was not read."""

    @property
    def risks_data(self) -> bool:
        """A client that goes there directly may lose data."""
        wrong = self.reading is not None and bool(self.reading.wrong)
        return wrong or any(quirk.risks_data for quirk in self.quirks)


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found out about a server."""

    uri: Target
    listed: Sequence[ListedExport] | None
    """None: the server does not tell."""
    exports: Sequence[Probed]
    misnamed: Sequence[str] = ()
    """Listed names that are no strings, so that nobody can ask for them."""
    refused: Sequence[tuple[str, str]] = ()
    """Names of exports that it lists and does not let us have, each with the reason."""
    tls_required: bool = False
    """The server tells nothing without TLS; then `exports` is empty."""

    @property
    def risks_data(self) -> bool:
        """A client that goes there directly may lose data."""
        return any(export.risks_data for export in self.exports)


FOR_CLIENTS = (
    "its certificate is for clients alone: libnbd, qemu and the gateway take it, OpenSSL refuses it"
)


async def probe(target: Target, *, every_export: bool = False, transmit: bool = False) -> Probe:
    """Ask a server about the export that the URI names, or about every one that it lists; `transmit`: open
    them as well, and read.

    Raises `CannotProbe`.
    """
    try:
        async with server_of(target) as server:
            news: list[News] = []
            server.tell = news.append
            found = await _probe(target, server, every_export=every_export, transmit=transmit)
            if any(isinstance(each, ForClientsAlone) for each in news):
                exports = [
                    replace(each, notes=(FOR_CLIENTS, *each.notes)) for each in found.exports
                ]
                found = replace(found, exports=exports)
            return found
    except Refusal as refusal:
        raise CannotProbe(refusal.why) from None


async def _probe(target: Target, server: Server, *, every_export: bool, transmit: bool) -> Probe:
    # A server may take one connection, and end with it: so the export comes before the list, where one will do.
    listed = await _listed_first(server) if every_export else None
    names = [export.name for export in listed or ()][:MAX_PROBED] or [export_of(target)]
    exports: list[Probed] = []
    refused: list[tuple[str, str]] = []
    for name in names:
        try:
            exports.append(await _probed(server, name))
        except TlsRequired:
            listed = await listed_by(server) if listed is None else listed
            return Probe(target, listed, (), server.misnamed, tls_required=True)
        except Rejected as refusal:
            if not listed:
                why = instead(refusal, await listed_by(server))
                raise CannotProbe(f"{target}: {why}") from None
            refused.append((name, refusal.why))
    if not every_export:
        listed = await listed_by(server)
    if transmit:
        exports = [replace(each, reading=await _read(server, each)) for each in exports]
    return Probe(target, listed, exports, server.misnamed, refused)


async def _listed_first(server: Server) -> Sequence[ListedExport] | None:
    """Give what a server lists; None if it says no. Raises `Unreachable`: of one that is silent, or not there,
    nothing else is to be had, and it would be waited for twice.
    """
    try:
        return await exports_of(server)
    except Unreachable:
        raise
    except Refusal:
        return None


async def _probed(server: Server, name: str) -> Probed:
    terms = Terms(name, structured=True, extended=True)
    negotiation = Negotiation(server)
    try:
        export, _dialect, quirks = await negotiation.describe(terms, thoroughly=True)
        evidence = negotiation.evidence
        assert evidence is not None
        contexts = await _contexts(negotiation, terms)
        gateway = version_in(await _contexts(negotiation, terms, QUERY))
    finally:
        await negotiation.aclose()
    wanted = decide(SEVERAL, [export], same_storage=False, may_differ=False, repaired=quirks)
    extended = export.extended
    program = identify(evidence, extended=extended, contexts=contexts, gateway=gateway)
    return Probed(
        name,
        evidence,
        export,
        extended,
        contexts,
        offer(view_of(export), structured=True, extended=True).flags,
        program,
        tuple(catalogue()[quirk] for quirk in quirks),
        (*_notes(evidence, program), f"connections = {SEVERAL}: {wanted.reason or ALL_OF_THEM}"),
    )


async def _contexts(negotiation: Negotiation, terms: Terms, *queries: str) -> tuple[str, ...]:
    """Give the names of the contexts that answer the queries; without a query, of all."""
    try:
        return tuple(each.name for each in await negotiation.list_contexts(terms, queries))
    except Refusal:
        return ()


async def _read(server: Server, export: Probed) -> Reading:
    """Read places all over an export, with and without DF: that must make no difference (Q-S6 does)."""
    structured = export.evidence.structured
    negotiation = Negotiation(server)
    try:
        link = await negotiation.go(Terms(export.name, structured=structured))
    finally:
        await negotiation.aclose()
    client = RawClient(link, reply_seconds=READ_SECONDS)
    wrong: list[str] = []
    places = _places(export.export)
    try:
        for offset, length in places:
            plain = await client.ask(Cmd.READ, offset, length)
            if plain.error:
                wrong.append(f"a READ of {length} bytes at {offset} fails: {plain}")
            if not structured or not export.evidence.flags & Flag.SEND_DF:
                continue
            whole = await client.ask(Cmd.READ, offset, length, flags=CmdFlag.DF)
            if whole.error:
                wrong.append(f"a READ with DF of {length} bytes at {offset} fails: {whole}")
            elif not plain.error and whole.data != plain.data:
                wrong.append(f"READs at {offset} give other data with DF than without")
    except Broken as broken:
        wrong.append(str(broken))
    finally:
        await client.close()
    return Reading(len(places), tuple(wrong))


def _places(export: Export) -> list[tuple[int, int]]:
    """Give offsets and lengths of blocks evenly spread over an export."""
    minimum = export.minimum
    length = min(max(minimum, READ_BYTES), export.size)
    last = export.size - length
    if length <= 0:
        return []
    step = max(1, last // (READ_PLACES - 1))
    offsets = {at - at % minimum for at in range(0, last + 1, step)}
    return [(offset, length) for offset in sorted(offsets)]


def _notes(evidence: Evidence, program: Program) -> Iterator[str]:
    if program.name == "qemu":
        # Q-S9; the size does not tell whether it was rounded.
        yield "qemu rounds sizes up to a multiple of 512: up to 511 zeros may stand behind the end of an image"
    if program.name == GATEWAY:
        yield "this is what its clients see: the server behind it is known by a probe of that server"
    if not evidence.info_known:
        yield "it knows no INFO, so the export was opened: a server that serves one client is gone now"
