"""What a client asks of meta contexts: which there are, and which of them it selects.

The upstream has them; the policies of the rule and of the export let the client have some, and the export adds
`base:allocation` where it is to be made up. What could mislead a backup program is refused rather than left
out: a dirty bitmap that may change while it is read.

One query is for ourselves: who we are (`gateway.protocol.introduction`).
"""

from __future__ import annotations

from gateway.access.rules import Grant
from gateway.clients.inquiry import Inquiry
from gateway.protocol import introduction
from gateway.protocol.errors import Refusal
from gateway.protocol.server_role import ContextsAsked, ExportAsked
from gateway.sessions.promise import (
    WHY_BITMAPS_MOVE,
    allowed_contexts,
    bitmaps_may_move,
    is_bitmap,
    selected_contexts,
)
from gateway.upstream.link import Terms
from gateway.wire.constants import Rep
from gateway.wire.handshake import MetaContext


async def contexts_told(inquiry: Inquiry, asked: ContextsAsked) -> tuple[MetaContext, ...]:
    """Give what LIST_META_CONTEXT or SET_META_CONTEXT tells. Raises `Refusal` with what the client is told
    instead.
    """
    if asked.select:
        inquiry.selected = None
    grant = inquiry.grant(asked.name)
    if asked.select:
        return await _selected(inquiry, asked, grant)
    queries = introduction.without(asked.queries)
    if queries == asked.queries:
        return await _listed_contexts(inquiry, asked, grant, queries)
    us = await _introduced(inquiry, asked, grant)
    # No queries at all would ask for every context.
    return us + (await _listed_contexts(inquiry, asked, grant, queries) if queries else ())


async def _introduced(
    inquiry: Inquiry, asked: ContextsAsked, grant: Grant
) -> tuple[MetaContext, ...]:
    """Say who we are to a client that asks for our introduction. It is only told if an INFO would tell it
    of the export, so that it learns of none by this, and if its policies let it have the name that it asks
    for.
    """
    await inquiry.described(ExportAsked(asked.name, frozenset(), go=False))
    inquiry.forget()  # what was opened for that is not what is asked next
    if not allowed_contexts(grant.chain, [introduction.QUERY], asked=False):
        return ()
    return (MetaContext(0, introduction.answer()),)


async def _listed_contexts(
    inquiry: Inquiry, asked: ContextsAsked, grant: Grant, queries: tuple[str, ...]
) -> tuple[MetaContext, ...]:
    route = grant.route
    terms = inquiry.terms(asked.name, grant)
    found = await inquiry.ask(grant, asked.name, lambda up: up.list_contexts(terms, queries))
    await _check_there(inquiry, grant, asked.name, terms)
    allowed = allowed_contexts(grant.chain, [each.name for each in found], asked=False)
    if route.stable_contexts_only and await _bitmaps_may_move(inquiry, grant, asked.name, terms):
        allowed = [name for name in allowed if not is_bitmap(name)]
    return tuple(context for context in found if context.name in allowed)


async def _selected(
    inquiry: Inquiry, asked: ContextsAsked, grant: Grant
) -> tuple[MetaContext, ...]:
    route = grant.route
    queries = tuple(allowed_contexts(grant.chain, asked.queries, asked=True))
    terms = inquiry.terms(asked.name, grant, queries)
    there = await _selected_there(inquiry, grant, asked.name, terms)
    await _check_there(inquiry, grant, asked.name, terms)
    theirs = [context.name for context in there]
    selected = selected_contexts(grant.chain, route, queries, theirs)
    if any(is_bitmap(context.name) for context in selected):
        await _check_bitmaps(inquiry, grant, asked.name, terms)
    inquiry.selected = asked.name, queries
    return selected


async def _check_there(inquiry: Inquiry, grant: Grant, asked: str, terms: Terms) -> None:
    """Refuse a name that the upstream does not have, if the upstream must have it: nbdkit tells contexts of
    any name that it is asked for.
    """
    if inquiry.must_be_there(grant):
        await inquiry.ask(grant, asked, lambda up: up.describe(terms))


async def _check_bitmaps(inquiry: Inquiry, grant: Grant, asked: str, terms: Terms) -> None:
    if await _bitmaps_may_move(inquiry, grant, asked, terms):
        if grant.route.stable_contexts_only:
            text = f"a dirty bitmap may change while it is read: {WHY_BITMAPS_MOVE}"
            raise Refusal(Rep.ERR_POLICY, text)
        inquiry.log.warning("a dirty bitmap may change while it is read", why=WHY_BITMAPS_MOVE)


async def _bitmaps_may_move(inquiry: Inquiry, grant: Grant, asked: str, terms: Terms) -> bool:
    if not grant.route.read_only and not grant.chain:
        return False
    export, _, _ = await inquiry.ask(grant, asked, lambda up: up.describe(terms))
    with inquiry.denials(grant, asked):
        return bitmaps_may_move(grant.chain, grant.route, export)


async def _selected_there(
    inquiry: Inquiry, grant: Grant, asked: str, terms: Terms
) -> tuple[MetaContext, ...]:
    try:
        return await inquiry.ask(grant, asked, lambda up: up.contexts(terms))
    except Refusal as refusal:
        if grant.route.synthesise_allocation and refusal.reply == Rep.ERR_UNSUP:
            return ()
        raise
