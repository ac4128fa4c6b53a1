"""What the gateway would do for one client that asks for one export: asked of the real upstream and of the code
that serves, and not guessed.

The client need not be there: it is who it is said to be. The rules are asked as for any other; then the
upstream is negotiated with as for a client of each framing, up to the point where the export would be opened
(beyond it, where a policy has to look at the disk), and `promise` and `plan` say the rest. Nothing is relayed.

What a running gateway has counted (connections, writers, what is left of a rate) is not known here: the
answer is for a client that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from gateway.access.chain import Placed, Terms, peek, prepares
from gateway.access.chain import terms as compiled
from gateway.access.loading import PolicyError
from gateway.access.rules import Access, Grant, NotGranted
from gateway.config import Config, Connections
from gateway.config.connections import PER_CLIENT
from gateway.links.shared import shared_terms
from gateway.policy import Charge, Client, Denied, Session
from gateway.protocol.commands import RefusedCommand
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, Offer, View
from gateway.protocol.server_role import Description
from gateway.protocol.table import ALL_COMMANDS, Row, Table
from gateway.scan.plan import Way
from gateway.scan.traffic import MAX_IN_FLIGHT
from gateway.sessions.promise import (
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
from gateway.sessions.service import limits_of
from gateway.upstream import link as upstream_side
from gateway.upstream.coherence import Decision, check_required, offered
from gateway.upstream.configured import StartError, load_keyring, upstreams
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.server import Server
from gateway.wire import limits
from gateway.wire.constants import BASE_ALLOCATION, Cmd, CmdFlag, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.handshake import BlockSizes


class PolicyBug(Exception):
    """Something failed that is no refusal, where policies have a say: the cause has the traceback."""


UPSTREAM, QUIRKS, GATEWAY = "upstream", "quirks", "gateway"
"""Steps of an export that are no policy's."""

FRAMINGS = (SIMPLE, STRUCTURED, EXTENDED)


# --- What is found


@dataclass(frozen=True, slots=True)
class Step:
    """An export on its way from the upstream to the client, after somebody has had a say."""

    name: str
    """Who: one of the constants above, or a policy."""
    size: int
    flags: int
    base: int = 0
    block_sizes: BlockSizes | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Restriction:
    """What a command may not do, or what becomes of its flags."""

    what: str
    error: str | None = None
    """What a client is answered; None: it notices nothing."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class ContextSaid:
    """What becomes of a meta context that the upstream has."""

    name: str
    by: str | None = None
    """The policy (or key of [[export]]) that keeps it from the client; None: it may be had."""
    fails: str | None = None
    """Why a client is refused that asks for it. None: it is left out."""
    would: str | None = None
    """The policy that would keep it from the client, if it were not only observed."""


@dataclass(frozen=True, slots=True)
class LimitSaid:
    """What a policy limits of a session as a whole."""

    policy: str
    in_flight: int | None
    charges: tuple[Charge, ...]
    observed: bool = False
    """It is only told of."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an export is served to clients of one framing."""

    client: Framing
    link: Framing
    export: Export
    """As the upstream means it: repaired."""
    connections: Decision
    """How many there are of those that are wanted, going by what the first one says."""
    quirks: tuple[str, ...]
    steps: tuple[Step, ...]
    """The first three are the upstream, the quirks, the gateway; then those policies that change something."""
    promised: Offer
    told: Description
    ways: Mapping[Cmd, Way]
    restrictions: Mapping[Cmd, tuple[Restriction, ...]]
    would: tuple[str, ...]
    """What policies that are only observed would change."""
    would_restrict: Mapping[Cmd, tuple[Restriction, ...]]
    """And what they would refuse beyond `restrictions`."""


@dataclass(slots=True)
class Report:
    """What a client gets that asks for an export: filled in as far as it gets."""

    client: Client
    asked: str
    tried: tuple[tuple[str, str], ...] = ()
    """The rules before the one that matches, and why they do not."""
    grant: Grant | None = None
    why: str = ""
    """Why it is denied, for the operator; empty if it is not."""
    refusal: Refusal | None = None
    """What the client is told then."""
    disconnect: bool = False
    """A session that is open would be ended."""
    would: tuple[str, ...] = ()
    """Why the client would be denied, if nothing were only observed."""
    limits: tuple[LimitSaid, ...] = ()
    uris: tuple[str, ...] = ()
    """The upstream's, if it has several."""
    wanted: Connections = PER_CLIENT
    """How many connections to the upstream are wanted, and for whom."""
    required: bool = False
    """Fewer will not do."""
    contexts: tuple[ContextSaid, ...] = ()
    no_contexts: str = ""
    """Why there are none, in the upstream's words."""
    views: list[Explanation] = field(default_factory=list)
    """One for each framing."""


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
        if not rules and not any(export.policies for export in config.exports):
            raise
        raise PolicyBug(f"{type(error).__name__}: {error}") from error


async def _explained(config: Config, name: str, client: Client) -> Report:
    report = Report(client, name)
    try:
        grant = _granted(Access(config), config, report)
        session = Session(report.client, grant.name)
        chain = _policies(grant, session, report)
    except Refusal as refusal:
        report.refusal = refusal
        return report
    report.limits = tuple(_limits(chain, session))
    upstream = config.upstream[grant.route.upstream]
    report.uris = tuple(map(str, upstream.uris))
    report.wanted, report.required = upstream.connections, upstream.connections_required
    failed: StartError | None = None  # as itself, not in the nursery's group
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
    """Give the policies as they stand for the client, as for INFO: nothing is counted. Raises `Refusal`."""
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
    for framing in FRAMINGS:
        if framing is STRUCTURED:
            names = await _listed(server, grant, report)
            movable = _movable_bitmaps(grant, report)
            report.contexts = tuple(_said_of(grant, name, movable) for name in names)
        # A client of simple replies cannot ask for any. The others are taken to ask for all that they may have.
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
            chain = await chain_over(chain, route, link)
    finally:
        if link is not None:
            link.close()
        await negotiation.aclose()
    first = first_view(route, offered(export, decision))
    agreed = compiled(chain, first)
    theirs = [context.name for context in export.contexts]
    if server.mode.wanted.shared:  # which select all, for whoever might ask
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
    said = Step(UPSTREAM, export.size, seen.flags, 0, seen.block_sizes, export.description)
    return Explanation(
        framing,
        export.framing,
        export,
        decision,
        quirks,
        (said, *_steps(export, first, agreed)),
        promised,
        told.description,
        plan_of(
            agreed,
            promised,
            export,
            dialect,
            translated=server.mode.why_translated(decision.count),
        ).ways,
        {command: tuple(_restrictions(agreed, command)) for command in sorted(ALL_COMMANDS)},
        tuple(_would(agreed)),
        _would_restrict(agreed),
    )


def _decided(server: Server, export: Export, quirks: Sequence[str], report: Report) -> Decision:
    """Decide how many connections there would be, if the others say what this one does. Raises `Refusal`."""
    decision = server.decide([export], quirks)
    if report.required:
        check_required(report.wanted, decision)
    return decision


# --- Meta contexts


async def _listed(server: Server, grant: Grant, report: Report) -> list[str]:
    """Give the names of the contexts that a client could ask for, if no policy had a say."""
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
        why = "this view is read-only, and the disk may be written meanwhile"
        return ContextSaid(name, "contexts.stable-only", why, would)
    return ContextSaid(name, would=would)


# --- Limits


def _limits(chain: Sequence[Placed], session: Session) -> Iterator[LimitSaid]:
    for placed in chain:
        said = limits_of([placed], session)
        in_flight = said.most_in_flight if said.most_in_flight < MAX_IN_FLIGHT else None
        charges = [*said.charges, *(charge for _policy, charge in said.watched)]
        if in_flight is not None or charges:
            yield LimitSaid(placed.name, in_flight, tuple(charges), placed.observed)


# --- What policies change


def _steps(export: Export, first: View, agreed: Terms) -> Iterator[Step]:
    yield Step(QUIRKS, export.size, export.flags, 0, export.block_sizes, export.description)
    yield _step(GATEWAY, first)
    for stage in reversed(agreed.stages):
        before, after = (_step(stage.placed.name, view) for view in (stage.behind, stage.view))
        if after != before:
            yield after


def _step(name: str, view: View) -> Step:
    return Step(name, view.size, view.flags, view.base, view.block_sizes, view.description)


def _restrictions(agreed: Terms, command: Cmd) -> Iterator[Restriction]:
    """Say what policies do to a command: all in one table, or, where hooks come between them, one by one."""
    if command not in agreed.hooked:
        yield from restrictions_of(agreed.table[command])
        return
    for stage in agreed.stages:
        yield from restrictions_of(stage.table[command], f" at {stage.placed.name}")


def restrictions_of(row: Row, where: str = "") -> Iterator[Restriction]:
    """Say in words what a row of a table says. `where` follows them: whose offsets they are."""

    def refused(what: str, why: RefusedCommand) -> Restriction:
        return Restriction(what + where, why.error.name, why.text)

    if row.refused is not None:
        yield refused("always", row.refused)
    if row.longest is not None and row.too_long is not None:
        yield refused(f"longer than {row.longest} bytes", row.too_long)
    for barred in row.barred:
        yield refused(f"bytes {barred.start} to {barred.end - 1}", barred.refused)
    for flags, why in row.refused_flags:
        yield refused(f"with {_names(flags)}", why)
    dropped = [flag for flag in CmdFlag if not flag & row.kept_flags]
    if dropped:
        yield Restriction(f"{_names(sum(dropped))} is not sent on{where}")
    if row.added_flags:
        yield Restriction(f"{_names(row.added_flags)} is always sent on{where}")


def _names(flags: int) -> str:
    return ", ".join(flag.name or "" for flag in CmdFlag if flag & flags)


def _would(agreed: Terms) -> Iterator[str]:
    """Say what observed policies would show otherwise."""
    yield from agreed.would
    if agreed.shadow is None:
        return
    now, then = agreed.view, agreed.shadow.view
    for verb, flags in (("hidden", now.flags & ~then.flags), ("shown", then.flags & ~now.flags)):
        if flags:
            names = ", ".join(flag.name or "" for flag in Flag if flag & flags)
            yield f"flags that would be {verb}: {names}"
    if then.block_sizes != now.block_sizes:
        sizes = then.block_sizes
        yield f"block sizes would be {sizes.minimum}, {sizes.preferred}, {sizes.maximum}"
    hidden = sorted(now.contexts - then.contexts)
    if hidden:
        yield f"contexts that would be hidden: {', '.join(hidden)}"


def _would_restrict(agreed: Terms) -> Mapping[Cmd, tuple[Restriction, ...]]:
    if agreed.shadow is None:
        return {}
    return dict(_beyond(agreed.table, agreed.shadow.table))


def _beyond(now: Table, then: Table) -> Iterator[tuple[Cmd, tuple[Restriction, ...]]]:
    for command in sorted(ALL_COMMANDS):
        said = tuple(restrictions_of(now[command]))
        more = tuple(each for each in restrictions_of(then[command]) if each not in said)
        if more:
            yield command, more
