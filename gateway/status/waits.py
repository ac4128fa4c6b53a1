"""What a session waits for, in one word and in a sentence.

A session that has something to do waits for one thing first of all. That its export is paused explains more
than that its client does not read, and a client that does not take its replies explains why the server is not
heard. So the first of these that is the case is told.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from gateway.hub.session import Hold
from gateway.jobs.locks import Held
from gateway.sessions.service import Relayed, Service


class Thing(StrEnum):
    """What may be waited for."""

    PAUSE = "pause"
    LOSSES = "losses"
    CLIENT = "client"
    THROTTLE = "throttle"
    CLAIM = "claim"
    CONNECTION = "connection"
    HOOK = "hook"
    SERVER = "server"


class WaitsFor(NamedTuple):
    """What a session waits for."""

    thing: Thing
    text: str
    """The same for people."""


def what_waits(running: Relayed, service: Service | None = None) -> WaitsFor | None:
    """Say what a session waits for; None: it has nothing to do. The `service` knows who has paused its export,
    and who has a claim: to look for that takes as long as it has sessions.
    """
    session, traffic = running.relaying, running.traffic
    if session.is_held(Hold.PAUSED):
        return WaitsFor(Thing.PAUSE, _who_has_paused(running, service))
    if session.is_held(Hold.COMES_LATE):
        return WaitsFor(Thing.LOSSES, "it is not known yet what was lost before it came")
    if session.takes_no_replies:
        return WaitsFor(Thing.CLIENT, "its client does not take its replies")
    if traffic.held:
        return WaitsFor(Thing.THROTTLE, f"it is held back by {_who_throttles(running)}")
    claims = [held for held in traffic.jobs.claiming if not held.is_granted]
    if claims:
        return WaitsFor(Thing.CLAIM, _who_claims(claims[0], service))
    why = running.opened.uplink.why_away
    if why is not None:
        return WaitsFor(Thing.CONNECTION, f"its connection to the server is lost: {why}")
    hooked = traffic.jobs.with_hooks
    if hooked is not None:
        policies = traffic.plan.hooked.get(hooked, "of a policy")
        return WaitsFor(Thing.HOOK, f"a hook does a {hooked.name}: {policies}")
    if session.waits_for_the_rest:
        return WaitsFor(Thing.CLIENT, "its client has sent a part of a request, and not the rest")
    if session.sends_no_requests or traffic.in_flight or traffic.jobs:
        return WaitsFor(Thing.SERVER, "the server does not answer")
    return None


def held_here(running: Relayed) -> dict[Thing, int]:
    """Say how many requests of a session wait in the gateway, and for what. Of one that is held back before it
    is begun there is one, for no more is read meanwhile.
    """
    traffic = running.traffic
    found: dict[Thing, int] = {}
    if running.relaying.is_held(Hold.PAUSED):
        found[Thing.PAUSE] = 1
    if traffic.held:
        found[Thing.THROTTLE] = 1
    if claims := sum(not held.is_granted for held in traffic.jobs.claiming):
        found[Thing.CLAIM] = claims
    if running.opened.uplink.why_away is not None and (lost := traffic.commands_in_flight):
        found[Thing.CONNECTION] = lost
    return found


def _who_has_paused(running: Relayed, service: Service | None) -> str:
    paused = None if service is None else service.paused.get(running.name)
    if paused is None:
        return "its export is paused for a moment"
    return f"its export is paused by {paused.by} since {iso_time(paused.since)}"


def iso_time(seconds: float) -> str:
    """Give a time of `time.time` as the log has it, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _who_throttles(running: Relayed) -> str:
    bucket = running.relaying.held_at
    for placed in running.membership.chain:
        if placed.observed:
            continue
        for charge in placed.policy.charges(running.membership.session):
            if charge.bucket is bucket:
                return f"policy {placed.name} ({charge})"
    return "a policy"


def _who_claims(claim: Held, service: Service | None) -> str:
    where = f"{claim.start}-{claim.end - 1}"
    for other in service.running if service is not None else ():
        for held in other.traffic.jobs.claiming:
            if held is not claim and held.is_granted and _overlap(held, claim):
                ours = other.membership.session.client.id
                return f"session {ours} writes a part of a block in {where}"
    return f"somebody else writes in {where}"


def _overlap(one: Held, other: Held) -> bool:
    return one.start < other.end and other.start < one.end
