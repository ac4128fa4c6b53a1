"""Chooses who does the usual step of a session: the compiled pump (`_pump.c`, which has the theory), or Python.

The pump is an accelerator. What it has to come to is said by `gateway.scan` and the lanes, which do everything
that is not the usual case, and the rest wherever the pump was not built. Where a side is TLS, the lanes receive
and send, and the pump scans what is in their buffers. `NBD_GATEWAY_PUMP=0` in the environment does without it.
"""

from __future__ import annotations

import os
import socket
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from gateway.hub.lane import BufferPool, Lane, Segment
from gateway.net.options import RelaySocket
from gateway.scan.memory import Memory
from gateway.scan.replies import Replies
from gateway.scan.requests import RequestScan, mask_of
from gateway.scan.traffic import Traffic
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, shifted

try:
    from gateway.hub import _pump as built
except ImportError:
    built = None  # type: ignore[assignment]  # mypy has one type for a module, and it is not there

SOURCE = sha256(Path(__file__).with_name("_pump.c").read_bytes()).hexdigest()
"""The hash of the pump's source: one that was built of another does not know these modules. It is read
here, for when a session begins there may be no descriptor left."""

VARIABLE = "NBD_GATEWAY_PUMP"
"""Set to 0, it has Python do all."""

NOT_MINE, GO_ON, SCANNED, RECEIVE_FAILED, SEND_FAILED = -2, -3, -4, -5, -6
"""What a pump says that has not done the whole step (else: the `Crowd`). It was not the usual case, and nothing
was done; the scan goes on where the lane says; the scan is done, and what comes after it is not; the socket has
failed that was read, or written to (`error` is its errno)."""

NO_SOCKET = -1
"""In place of a descriptor: a pump with that does no step."""

_FRAMINGS = {SIMPLE: 0, STRUCTURED: 1, EXTENDED: 2}


class Pump(Protocol):
    """Does the usual steps of one session."""

    @property
    def error(self) -> int:
        """The errno of what has failed last."""

    def requests(self) -> int:
        """The client's socket can be read: do the step, or say who has to."""

    def replies(self) -> int:
        """The same for the link's."""

    def scan_requests(self) -> bool:
        """Scan what is in the buffer of the requests' lane, as far as it is the usual case. Say whether nothing
        is left for its scanner to do now.
        """

    def scan_replies(self) -> bool:
        """The same for the replies' lane."""


def is_compiled() -> bool:
    """Say whether there is a compiled pump, made of the source that is here, and nobody wants to do without."""
    return built is not None and built.MADE_OF == SOURCE and os.environ.get(VARIABLE) != "0"


def is_plain(sock: RelaySocket | None) -> bool:
    """Say whether a pump can receive from a socket, and send to it."""
    return type(sock) is socket.socket


def pump_for(
    session: object,
    client: RelaySocket,
    link: RelaySocket | None,
    traffic: Traffic,
    requests: RequestScan,
    replies: Replies,
    lanes: tuple[Lane, Lane],
    pool: BufferPool,
) -> Pump | None:
    """Give the pump for a session, or None: Python does all. The session's `lanes` are those of its requests
    and of its replies. Unless both sockets are plain, the pump only scans.
    """
    if not is_compiled() or link is None:
        return None
    whole = is_plain(client) and is_plain(link)
    plan, early, going, turn, debt = (
        traffic.plan,
        traffic.early,
        traffic.going,
        traffic.turn,
        traffic.debt,
    )
    return built.Pump(
        objects=(session, traffic, requests, replies, *lanes, early, going, turn, debt),
        types=(Memory, Segment),
        in_flight=traffic.in_flight,
        jobs=traffic.jobs,
        fences=traffic.fences,
        kin=traffic.locks.kin,
        pool=pool,
        free=pool.free if type(pool) is BufferPool else None,
        client_framing=shifted(plan.offer.framing, plan.offer.base),
        client_fd=client.fileno() if whole else NO_SOCKET,
        link_fd=link.fileno() if whole else NO_SOCKET,
        client=_FRAMINGS[plan.offer.framing],
        link=_FRAMINGS[plan.link],
        fast=plan.fast,
        size=plan.offer.size,
        base=plan.offer.base,
        mask=mask_of(plan),
    )
