"""What the gateway would do for one client that asks for one export. Nothing is guessed: the real upstream and
the code that serves give the answers.

The client need not be there: it is who the user says it is. The rules decide as for any other client. Then we
negotiate with the upstream as for a client of each framing, up to the point where the export would be opened
(or further, if a policy has to look at the disk). `promise` and `plan` say the rest. Nothing is relayed.

We do not know what a running gateway has counted (connections, writers, what is left of a rate): the answer is
for a client that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import trio

from gateway.access.chain import Placed, compile_chain, peek, prepares
from gateway.access.loading import PolicyError
from gateway.access.rules import Access, Grant, NotGranted
from gateway.config import Config, Upstream
from gateway.inspect.changes import restrictions_on, steps_of, would_restrict, would_show
from gateway.inspect.report import (
    UPSTREAM,
    ContextSaid,
    Explanation,
    HomeSaid,
    LimitSaid,
    Report,
    Waypoint,
)
from gateway.inspect.tickets import with_tickets
from gateway.links.shared import shared_terms
from gateway.links.uplink import OwnLink
from gateway.policy import Client, Denied, Session
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.protocol.table import ALL_COMMANDS
from gateway.scan.traffic import MAX_IN_FLIGHT
from gateway.sessions.opened import limits_of
from gateway.sessions.promise import (
    WHY_BITMAPS_MOVE,
    bitmaps_may_move,
    check_places,
    first_view,
    is_bitmap,
    plan_of,
    promise,
    refusal_of,
    refusal_there,
    refusal_to_join,
    selected_contexts,
    told_of,
    verdict_on,
    without_payload_flag,
)
from gateway.sessions.reading import chain_over
from gateway.upstream import link as upstream_side
from gateway.upstream.coherence import Decision, check_required, offered
from gateway.upstream.configured import StartError, load_keyring, upstreams
from gateway.upstream.errors import Unreachable
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.server import Server
from gateway.wire import limits
from gateway.wire.constants import BASE_ALLOCATION, Rep
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing


class PolicyBug(Exception):
    """Something failed that is no refusal, while policies were called. The cause has the traceback."""


FRAMINGS = (SIMPLE, STRUCTURED, EXTENDED)

# --- Asking


async def explain(config: Config, name: str, client: Client) -> Report:
    """Find out what a client gets that asks for an export by a name. Raises `StartError`, `PolicyError` if
    the configuration cannot be used, and `PolicyBug`.
    """
    try:
        return await _explained(config, name, client)
    except (StartError, PolicyError):
        raise
    except (Exception, SystemExit) as error:
        rules = any(rule.policies for rule in config.rule)
        exports = any(export.policies for export in config.exports)
        if not rules and not exports and not config.tickets.are_kept:
            raise
        raise PolicyBug(f"{type(error).__name__}: {error}") from error


async def _explained(config: Config, name: str, client: Client) -> Report:
    report = Report(client, name)
    try:
        config, access = with_tickets(config)
        grant = _granted(access, config, report)
        session = Session(report.client, grant.name)
        chain = _policies(grant, session, report)
    except Refusal as refusal:
        report.refusal = refusal
        return report
    report.limits = tuple(_limits(chain, session))
    upstream = config.upstream[grant.route.upstream]
    if config.workers != 1 or config.fleet is not None:
        report.home = _home(config, grant, upstream)
    report.uris = tuple(map(str, upstream.uris))
    report.wanted, report.required = upstream.connections, upstream.connections_required
    failed: StartError | None = None  # raised below, not in the nursery's group
    async with trio.open_nursery() as embedded:
        try:
            async with upstreams(config, embedded, load_keyring(config)) as servers:
                await _ask(servers[grant.route.upstream], grant, chain, report)
        except Refusal as refusal:
            report.refusal, report.why = refusal_there(report.asked, refusal), refusal.why
        except StartError as error:
            failed = error
        embedded.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return report


def _home(config: Config, grant: Grant, upstream: Upstream) -> HomeSaid:
    """Say which worker serves the disk, or that one gateway of a fleet does: which one, only etcd knows."""
    from gateway.config.fleet import late_writes
    from gateway.workers.homes import addresses_of, counted_by, home_of, table_of
    from gateway.workers.number import number_of

    counted = counted_by(config, kept=config.fleet is None)
    table, workers = table_of(config, counted=counted), number_of(config)
    homed = table[addresses_of(upstream)[0]]
    if config.fleet is not None:
        places = {name: (u.nbd_uris, u.late_write_seconds) for name, u in config.upstream.items()}
        late = late_writes(places)[grant.route.upstream]
        return HomeSaid(
            None,
            1,
            homed.kind.value,
            homed.why,
            in_fleet=True,
            fenced=config.fleet.fence is not None,
            longest_wait=config.fleet.longest_wait(late),
            lives_on=upstream.reconnect_seconds,
        )
    worker = home_of(table, upstream, grant.route.upstream_name, workers)
    return HomeSaid(worker, workers, homed.kind.value, homed.why)


def _granted(access: Access, config: Config, report: Report) -> Grant:
    """Ask the rules. Raises `Refusal`."""
    found: Grant | NotGranted
    try:
        found = access.find(report.client, report.asked)
    except NotGranted as denied:
        found = denied
        report.why, report.disconnect = str(denied), denied.disconnect
    else:
        report.grant, report.would = found, found.would
    report.tried = found.tried
    has_tls = any(listen.tls_mode != "off" for listen in config.listen)
    refusal = refusal_of(
        config,
        report.asked,
        found,
        secure=report.client.identity.tls,
        without_tls=Rep.ERR_TLS_REQD if has_tls else None,
    )
    if refusal is not None:
        report.why = report.why or "the export is only for clients over TLS"
        raise refusal
    assert isinstance(found, Grant)
    return found


def _policies(grant: Grant, session: Session, report: Report) -> list[Placed]:
    """Give the policies as they stand for the client at INFO: nothing is counted. Raises `Refusal`."""
    try:
        return peek(grant.chain, session)
    except Denied as denied:
        report.why = str(denied)
        raise refusal_to_join(grant.route, report.asked, denied) from None


async def _ask(server: Server, grant: Grant, chain: list[Placed], report: Report) -> None:
    try:
        await _views(server, grant, chain, report)
    except Denied as denied:
        report.why = str(denied)
        raise refusal_to_join(grant.route, report.asked, denied) from None


async def _views(server: Server, grant: Grant, chain: list[Placed], report: Report) -> None:
    try:
        await _all_views(server, grant, chain, report)
    except Unreachable as unreachable:
        if not report.views:
            raise
        # qemu-nbd without -t, for one, ends with the first client that it has taken.
        report.gone = unreachable.why


async def _all_views(server: Server, grant: Grant, chain: list[Placed], report: Report) -> None:
    for framing in FRAMINGS:
        if framing is STRUCTURED:
            names = await _listed(server, grant, report)
            movable = _movable_bitmaps(grant, report)
            report.contexts = tuple(_said_of(grant, name, movable) for name in names)
        # A client with simple replies cannot ask for any. We reckon that the others ask for all that they may
        # have.
        allowed = [context.name for context in report.contexts if context.by is None]
        queries = tuple(allowed[: limits.MAX_QUERIES]) or None
        report.views.append(await _view(server, grant, chain, framing, queries, report))


async def _view(
    server: Server,
    grant: Grant,
    chain: list[Placed],
    framing: Framing,
    queries: tuple[str, ...] | None,
    report: Report,
) -> Explanation:
    route = grant.route
    terms = upstream_side.Terms(route.upstream_name, framing.chunked, framing is EXTENDED, queries)
    negotiation = Negotiation(server)
    link: upstream_side.Link | None = None
    try:
        if server.mode.wanted.shared:
            terms = await shared_terms(negotiation, route.upstream_name)
        export, dialect, quirks = await negotiation.describe(terms)
        seen = negotiation.evidence
        assert seen is not None
        decision = _decided(server, export, quirks, report)
        if prepares(chain):
            link = await negotiation.go(terms)
            export, dialect, quirks = link.export, link.dialect, link.quirks
            chain = await chain_over(chain, route, OwnLink(server, link))
    finally:
        if link is not None:
            link.close()
        await negotiation.aclose()
    first = first_view(route, offered(export, decision))
    agreed = compile_chain(chain, first)
    theirs = [context.name for context in export.contexts]
    if server.mode.wanted.shared:  # shared connections select all, for whoever might ask
        theirs = [name for name in theirs if name in (queries or ())]
    promised = promise(
        agreed,
        structured=framing.chunked,
        extended=framing is EXTENDED,
        selected=selected_contexts(grant.chain, route, queries or (), theirs),
    )
    check_places(server, promised)
    told = told_of(report.asked, route, export, agreed, promised)
    if not promised.contexts:
        told = without_payload_flag(told)
    said = Waypoint(UPSTREAM, export.size, seen.flags, 0, seen.block_sizes, export.description)
    return Explanation(
        framing,
        export.framing,
        export,
        decision,
        quirks,
        (said, *steps_of(export, first, agreed)),
        promised,
        told.description,
        plan_of(
            agreed,
            promised,
            export,
            dialect,
            translated=server.mode.why_translated(decision.count),
        ).ways,
        {command: tuple(restrictions_on(agreed, command)) for command in sorted(ALL_COMMANDS)},
        tuple(would_show(agreed)),
        would_restrict(agreed),
    )


def _decided(server: Server, export: Export, quirks: Sequence[str], report: Report) -> Decision:
    """Decide how many connections there would be, if the others tell what this one tells. Raises `Refusal`."""
    decision = server.decide([export], quirks)
    if report.required:
        check_required(report.wanted, decision)
    return decision


# --- Meta contexts


async def _listed(server: Server, grant: Grant, report: Report) -> list[str]:
    """Give the names of the contexts that a client could ask for if there were no policies."""
    negotiation = Negotiation(server)
    terms = upstream_side.Terms(grant.route.upstream_name, structured=True, extended=True)
    names: list[str] = []
    try:
        names = [context.name for context in await negotiation.list_contexts(terms, ())]
    except Refusal as refusal:
        if refusal.reply != Rep.ERR_UNSUP:
            raise
        report.no_contexts = refusal.why
    finally:
        await negotiation.aclose()
    if grant.route.synthesise_allocation and BASE_ALLOCATION not in names:
        names.append(BASE_ALLOCATION)
    return names


def _movable_bitmaps(grant: Grant, report: Report) -> bool:
    """Say whether dirty bitmaps are hidden because they may change while they are read."""
    if not grant.route.stable_contexts_only:
        return False
    return bitmaps_may_move(grant.chain, grant.route, report.views[0].export)


def _said_of(grant: Grant, name: str, movable: bool) -> ContextSaid:
    verdict = verdict_on(grant.chain, name)
    if verdict is not None:
        return ContextSaid(name, verdict.by, verdict.fails)
    observed = [Placed(placed.policy, placed.name) for placed in grant.chain if placed.observed]
    watched = verdict_on(observed, name)
    would = None if watched is None else watched.by
    if movable and is_bitmap(name):
        return ContextSaid(name, "contexts.stable-only", WHY_BITMAPS_MOVE, would)
    return ContextSaid(name, would=would)


# --- Limits


def _limits(chain: Sequence[Placed], session: Session) -> Iterator[LimitSaid]:
    for placed in chain:
        said = limits_of([placed], session)
        in_flight = said.most_in_flight if said.most_in_flight < MAX_IN_FLIGHT else None
        charges = [*said.charges, *(charge for _policy, charge in said.watched)]
        if in_flight is not None or charges:
            yield LimitSaid(placed.name, in_flight, tuple(charges), placed.observed)
