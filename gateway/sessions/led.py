"""Clients whose disk has its home at another gateway of the fleet: what their sessions are where they came in.

Theory
------

The gateway where a client came in (its *entry*) ends the client's NBD there, and has the disk's *home* for its
upstream: a server that it connects to, asks for the export under the name that the client said, and relays to.
So a home that dies is a server that dies. The session lives on without a link (`surviving`), what was
acknowledged and not flushed is kept and told by the rule (`gateway.losses`), and the link is made again within
`reconnect-seconds`, to whichever gateway is the home by then. Nothing of that is done here a second time.

Each link to a home is one client's own, and says who the client is (`gateway.fleet.door`). So to the home it is
a client like any other: rules, policies, limits, the audit log, claims and repairs are there.

What differs from any server, and where:

- *Nothing is decided twice.* The export is as the home tells it: no policies here, no description, nothing
  made up, no quirk mended (`led_grant`, `led_settings`). Blocks are the home's to put together
  (`Export.any_alignment`): two entries that each read, changed and wrote back a block would undo each other's
  work.
- *The rules are asked here before the home is*, though they are asked again there, and that answer holds. Who
  is denied must not have etcd asked, or a home made, for any name that he can think of; and in the clear nobody
  learns the name of an export that requires TLS. What policies count, they count at the home alone.
- *Others write* whose writes are not seen here (`Survival.through_us`): they came in at other gateways. So with
  CAN_MULTI_CONN all sessions of the disk are told of a home's death, whatever they wrote themselves
  (`gateway.losses.rule`, *A link dies*). And what was flushed, and is not there, is taken for another disk only
  if most of it is gone (`gateway.losses.witnesses`).
- *A home may say that it has kept all*, when it has given the disk away (`Peer.kept`). So what is acknowledged
  and not flushed is in doubt until the next home is there, and lost only if nobody has said so.
- *There is no one log of what all have written*: that was the home's. So `verify` and `replay`, which need one,
  are `sticky` here (`led_settings`); `assume-durable` is what it is.
- *The home says no in our words*, so that a client hears what it would have heard there
  (`gateway.upstream.errors`).

A disk whose home is here is served as if there were no fleet. If it comes here while sessions are led
elsewhere, their links come here too, by a socket pair: they stay two sessions until the client leaves.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from gateway.access.rules import Grant
from gateway.config import PER_CLIENT, Upstream
from gateway.upstream.server import Server

if TYPE_CHECKING:
    from gateway.handover.given import Given  # costs nothing where there is one gateway


class Gateways(Protocol):
    """Knows which gateway is the home of each disk, where there is a fleet of them."""

    async def leads(self, client: Given, server: Server) -> Server | None:
        """Give the home of the disk that a client asks for, as an upstream for this client alone, if it is
        another gateway; None: the disk is served here. `server` is what the disk is at. Raises `Refusal`:
        nobody serves it now.
        """
        ...


def led_grant(grant: Grant) -> Grant:
    """Give what a client is granted here whose home is another gateway: the export as that one tells it."""
    route = replace(
        grant.route,
        upstream_name=grant.name,
        description=None,
        synthesise_allocation=False,
        read_only=False,
        stable_contexts_only=False,
        uses=(),
    )
    return replace(grant, route=route, chain=(), would=())


def disks_at_home(server: Server) -> Hashable:
    """Give whose disks those of a server are as their homes show them. What is remembered of them is of the way
    there.
    """
    return "home", server.disks


def led_settings(settings: Upstream, most_seconds: float, quiet_seconds: int) -> Upstream:
    """Give how a home is spoken to by whoever leads clients of an upstream there. To find it takes
    `most_seconds`, and the home may take as long as the upstream to open the export; after `quiet_seconds`
    without a sign of it a connection is given up.
    """
    return settings.model_copy(
        update={
            "connect_seconds": most_seconds,
            "negotiate_seconds": settings.connect_seconds + settings.negotiate_seconds,
            "keepalive_seconds": quiet_seconds,
            "user_timeout_seconds": quiet_seconds,
            "max_connections": None,
            "connections": PER_CLIENT,
            "connections_required": False,
            "coherence": "flush",
            "quirks": (),
            "same_storage": False,
            "server_is_peer": False,
            "unflushed": settings.unflushed if settings.unflushed == "assume-durable" else "sticky",
            "stall_seconds": 0,
        }
    )
