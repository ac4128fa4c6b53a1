"""Whom a load balancer speaks for: the PROXY protocol on a connection (see `gateway.wire.proxy`).

Only from where it is trusted to be true: a header says who a client is, and anybody can write one. And from
there always: if a header were only looked for, a client of a load balancer that sends none could bring one of
its own (section 2 of the specification: "MUST not try to guess").
"""

from __future__ import annotations

import trio

from gateway.config import Listen
from gateway.identity import Identity
from gateway.net.drive import PeerClosed
from gateway.protocol.errors import Hangup
from gateway.wire.errors import WireError
from gateway.wire.proxy import Header, decode_header


async def introduced(stream: trio.SocketStream, peer: Identity, listen: Listen) -> Identity:
    """Give who a connection's client is: whom the peer speaks for, or the peer itself. Nothing is received but
    the header.

    Raises `PeerClosed`, `Hangup`, `WireError`.
    """
    if not _is_trusted(peer, listen):
        return peer
    source = (await _receive_header(stream, listen.handshake_seconds)).source
    if source is None:
        return peer
    if source.address is None:
        return Identity("a Unix socket")
    return Identity.at(str(source.address), source.port)


def _is_trusted(peer: Identity, listen: Listen) -> bool:
    return any(
        peer.unix is not None
        if trusted == "unix"
        else peer.address is not None and peer.address in trusted
        for trusted in listen.proxy_protocol or ()
    )


async def _receive_header(stream: trio.SocketStream, seconds: float) -> Header:
    received = b""
    with trio.move_on_after(seconds):
        while True:
            header = decode_header(received)
            if isinstance(header, Header):
                return header
            try:
                data = await stream.receive_some(header)
            except trio.BrokenResourceError as error:
                raise PeerClosed(f"the connection broke: {error.__cause__ or error}") from None
            if not data and received:
                raise WireError(f"the PROXY header ends after {received!r}")
            if not data:  # somebody looked whether we are there
                raise PeerClosed("the peer closed the connection before a PROXY header")
            received += data
    raise Hangup(f"expected a PROXY header within {seconds:g} s, got {received!r}")
