"""What a client is promised of an export: what the configuration says of it, over what its upstream can do.

`offer` decides; here is what goes into it. Those who serve and those who explain ask the same function.

Dirty bitmaps of views that are read-only because we make them so: the disk may be written meanwhile, through
the server or by others, and the bitmap with it. qemu hides bitmaps that may change from read-only exports for
this reason (commit 702aa50d61). Backup programs cope in different ways, so they are offered, with a warning in
the log; `contexts.stable-only` hides them. What is hidden is refused, not left out: a qemu 3.0 takes a bitmap
that it asked for and did not get for one that is all clean (Q-C8), and makes an empty backup.
"""

from __future__ import annotations

from gateway.config import Route
from gateway.protocol.export import Export, Offer, offer, view_of
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import MetaContext


def promise(
    route: Route,
    export: Export,
    *,
    structured: bool,
    extended: bool,
    selected: tuple[MetaContext, ...] = (),
) -> Offer:
    """Give what a client is promised that comes by this route and negotiated this."""
    view = view_of(
        export,
        any_alignment=route.unaligned == "rmw",
        made_up=frozenset({BASE_ALLOCATION} if route.synthesise_allocation else ()),
    )
    if route.read_only:
        view = view.having(Flag.READ_ONLY)
    return offer(view, structured=structured, extended=extended, selected=selected)


def bitmaps_may_move(route: Route, export: Export) -> bool:
    """Say whether a dirty bitmap may change while a client of this route reads it, who is not told so by a
    writable export.
    """
    return route.read_only and not export.flags & Flag.READ_ONLY


def is_bitmap(context: str) -> bool:
    """Say whether a meta context is a dirty bitmap."""
    return context.startswith(DIRTY_BITMAP)
