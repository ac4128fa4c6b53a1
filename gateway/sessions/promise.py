"""What a client is promised of an export, and told: what the configuration and its policies say, over what its
upstream can do.

`view_of` begins, the policies go on, `offer` ends; here is what goes into them, and what a client hears of it
or in its place. Nothing here asks or awaits anybody: those who serve (`gateway.clients.inquiry`) and those who
explain (`gateway.inspect.explain`) find things out each in their own way, and decide by the same functions.

Dirty bitmaps of views that are read-only because we make them so: the disk may be written meanwhile, through
the server or by others, and the bitmap with it. qemu hides bitmaps that may change from read-only exports for
this reason (commit 702aa50d61). Backup programs cope in different ways, so they are offered, with a warning in
the log; `contexts.stable-only` hides them. What is hidden is refused, not left out: a qemu 3.0 takes a bitmap
that it asked for and did not get for one that is all clean (Q-C8), and makes an empty backup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.access.chain import Compiled, Placed, compile_chain
from gateway.access.rules import Grant, NotGranted
from gateway.config import Config, Route
from gateway.policy import Denied
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, Offer, View, offer, view_of
from gateway.protocol.server_role import Description
from gateway.quirks import Dialect
from gateway.scan.plan import Plan, Shadow, plan
from gateway.upstream.server import Server
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import MetaContext, shown

# --- What is promised


def first_view(route: Route, export: Export) -> View:
    """Give the view that the policy nearest to the upstream gets."""
    view = view_of(
        export,
        any_alignment=route.unaligned == "rmw",
        made_up=frozenset({BASE_ALLOCATION} if route.synthesise_allocation else ()),
    )
    if route.description is not None:
        view = replace(view, description=route.description)
    return view.having(Flag.READ_ONLY) if route.read_only else view


def promise(
    agreed: Compiled,
    *,
    structured: bool,
    extended: bool,
    selected: tuple[MetaContext, ...] = (),
) -> Offer:
    """Give what a client is promised that has negotiated this, and whose policies come to `agreed`."""
    return offer(agreed.view, structured=structured, extended=extended, selected=selected)


def plan_of(
    agreed: Compiled, promised: Offer, export: Export, dialect: Dialect, *, translated: str = ""
) -> Plan:
    """Give the plan of a session that was promised this. `translated`: why each command is a job."""
    shadow = None
    if agreed.shadow is not None:
        would = promise(
            agreed.shadow,
            structured=promised.structured,
            extended=promised.extended,
            selected=promised.contexts,
        )
        shadow = Shadow(would, agreed.shadow.table)
    return plan(
        promised,
        export,
        dialect,
        table=agreed.table,
        hooked=agreed.hooked,
        shadow=shadow,
        translated=translated,
    )


# --- What is told of it


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is told of an export."""

    description: Description
    alignment: int
    """What its requests have to be multiples of, in bytes."""
    asks_for_sizes: bool
    """If there is an alignment, clients that do not ask for block sizes are turned away."""


def told_of(name: str, route: Route, export: Export, agreed: Compiled, promised: Offer) -> Told:
    """Give what INFO and GO tell. The upstream's canonical name means something to the client only if it
    asked for the export under the name that the upstream has for it.
    """
    canonical = export.name if route.upstream_name == name else name
    words = agreed.view.description
    description = Description(promised.size, promised.flags, promised.block_sizes, canonical, words)
    return Told(description, promised.alignment, route.unaligned == "refuse")


def without_payload_flag(told: Told) -> Told:
    """Give what GO tells a client without contexts ("BLOCK_STATUS_PAYLOAD ... SHOULD NOT be set")."""
    flags = told.description.flags & ~Flag.BLOCK_STATUS_PAYLOAD
    return replace(told, description=replace(told.description, flags=flags))


def refusal_of(
    config: Config, name: str, found: Grant | NotGranted, *, secure: bool, without_tls: Rep | None
) -> Refusal | None:
    """Give what a client is told in place of the export that it names, for what the rules say; None if it may
    have it. `without_tls`: how it is refused that would have to come over TLS, and does not (`secure`); None:
    as for a name that does not exist, for there is no TLS where it came in.

    The words are the same whatever it asked. The reply is ERR_TLS_REQD for INFO and GO alone: "The server MUST
    NOT send NBD_REP_ERR_TLS_REQD in response to any option other than NBD_OPT_INFO, NBD_OPT_GO and
    NBD_OPT_EXPORT_NAME" ("SELECTIVETLS mode"), the last of which has no error reply. So whoever asks for its
    contexts hears ERR_UNKNOWN, as it would of a client's mistake in the name, and what the mistake is.
    """
    if isinstance(found, Grant):
        route: Route | None = found.route
    else:
        route = None if found.name is None else config.route(found.name)
    if route is None or (isinstance(found, NotGranted) and found.hidden):
        return _unknown(name)
    if route.tls_required and not secure:
        if without_tls is None:
            return _unknown(name)
        return Refusal(without_tls, f"export {shown(name)} wants TLS: send STARTTLS")
    if isinstance(found, NotGranted):
        return Refusal(Rep.ERR_POLICY, f"access to export {shown(name)} is denied")
    return None


def refusal_to_join(route: Route, asked: str, denied: Denied) -> Refusal:
    """Give what a client is told that asks for an export by a name, if a policy does not let it in."""
    if route.hide:
        return _unknown(asked, why=str(denied))
    return Refusal(Rep.ERR_POLICY, str(denied))


def refusal_there(asked: str, refused: Refusal) -> Refusal:
    """Give what a client is told that asks for an export by a name, where the upstream has refused it.

    Of a name that the upstream does not have it hears what it hears of one that is hidden: else the words would
    say which ones are. The upstream's own are for the log.
    """
    if refused.reply != Rep.ERR_UNKNOWN:
        return refused
    return _unknown(asked, why=refused.why)


def check_places(server: Server, promised: Offer) -> None:
    """Refuse to let a client write to a disk that may be another one next time. Raises `Refusal`."""
    if server.may_differ and not promised.flags & Flag.READ_ONLY:
        text = (
            f"upstream {server.name!r} has several uris, which may lead to different disks: its exports are"
            " served read-only, unless same-storage = true says that it is one"
        )
        raise Refusal(Rep.ERR_POLICY, text)


def _unknown(name: str, *, why: str | None = None) -> Refusal:
    return Refusal(Rep.ERR_UNKNOWN, f"there is no export {shown(name)}", why=why)


# --- Meta contexts


def allowed_contexts(chain: Sequence[Placed], names: Sequence[str], *, asked: bool) -> list[str]:
    """Give those meta contexts (or queries for them) that the policies let a client have. `asked`: the client
    has asked for them by name. It is refused if it would mislead the client to leave one out (`Refusal`).
    """
    allowed = []
    for name in names:
        verdict = verdict_on(chain, name)
        if verdict is None:
            allowed.append(name)
        elif asked and verdict.fails is not None:
            raise Refusal(Rep.ERR_POLICY, f"meta context {name!r}: {verdict.fails}")
    return allowed


@dataclass(frozen=True, slots=True)
class Verdict:
    """A meta context that a policy does not let a client have."""

    by: str
    """Which policy."""
    fails: str | None = None
    """Why a client that asks for it is refused. None: it is left out."""


def verdict_on(chain: Sequence[Placed], name: str) -> Verdict | None:
    """Say which policy keeps a meta context (or a query for some) from a client; None if none does. If one
    policy leaves it out and another refuses it, the client is refused.
    """
    left_out: Verdict | None = None
    for placed in chain:
        if placed.observed:
            continue
        try:
            if not placed.policy.context(name) and left_out is None:
                left_out = Verdict(placed.name)
        except Denied as denied:
            return Verdict(placed.name, str(denied))
    return left_out


def selected_contexts(
    chain: Sequence[Placed], route: Route, queries: Sequence[str], theirs: Sequence[str]
) -> tuple[MetaContext, ...]:
    """Give the contexts that a client gets for its queries, of those that the upstream has selected."""
    ours = allowed_contexts(chain, theirs, asked=False)
    if route.synthesise_allocation and BASE_ALLOCATION not in ours:
        ours += [BASE_ALLOCATION] if BASE_ALLOCATION in queries else []
    # Ids are ours, for the link that serves the session may not be this one.
    return tuple(MetaContext(i, name) for i, name in enumerate(ours, start=1))


WHY_BITMAPS_MOVE = "this view is read-only, and the disk may be written meanwhile"


def bitmaps_may_move(chain: Sequence[Placed], route: Route, export: Export) -> bool:
    """Say whether a dirty bitmap may change while a client reads it, and the client cannot see from its export
    that it may. Raises `Denied`.
    """
    if export.flags & Flag.READ_ONLY:
        return False
    # Before the disk has been looked at; no policy that has to is what makes a view read-only.
    ready = [each for each in chain if not each.policy.prepares()]
    return compile_chain(ready, first_view(route, export)).view.allows(Flag.READ_ONLY)


def is_bitmap(context: str) -> bool:
    """Say whether a meta context is a dirty bitmap."""
    return context.startswith(DIRTY_BITMAP)
