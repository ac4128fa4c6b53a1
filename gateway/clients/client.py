"""One client, from the moment it has connected until it has gone.

Its socket is tuned, and it is known who it is: the peer, or whom a load balancer speaks for that we trust and
that speaks first (`gateway.net.proxy`). Then it negotiates (`negotiating`), and what has become of it is
counted for its listener (`Became`) and said in the log, with the reason.

A client that another process has handed over was tuned and introduced there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from gateway.clients.negotiating import NegotiatingClient, TlsFailed
from gateway.config import Listen
from gateway.counts.totals import Became
from gateway.identity import Identity
from gateway.log import ORIGIN
from gateway.log.ids import new_id
from gateway.net.drive import PeerClosed, close_stream
from gateway.net.options import peer_of, tune
from gateway.net.proxy import introduced
from gateway.protocol.errors import Hangup
from gateway.sessions.service import Service
from gateway.wire.errors import WireError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gateway.handover.given import Given
    from gateway.tls.session import TlsSession  # costs nothing where there is no TLS

ChooseSession = Callable[[bytes], "TlsSession | None"]
"""Gives a client's TLS session by what it has sent so far; None if more is needed to know which."""


async def serve_client(
    service: Service,
    listen: Listen,
    stream: trio.SocketStream,
    tls: ChooseSession | None = None,
    *,
    session_id: str | None = None,
    reached: str | None = None,
) -> bool:
    """Serve one client until it has gone; say whether it was one, and has asked for something. Never raises for
    anything that a peer does.

    `tls` is there if the listener has TLS. `session_id` is what the log knows the client by; None: a new one.
    `reached` is the URI by which clients reach the listener; None: the one that it has in the configuration,
    whose port may be left to the kernel.
    """
    session_id = session_id or new_id()
    reached = reached or str(listen.uri)
    with suppress(OSError):  # it may have gone already
        tune(
            stream.socket,  # type: ignore[arg-type] # a Trio socket has what is needed of a plain one
            keepalive_seconds=listen.keepalive_seconds,
            user_timeout_seconds=listen.user_timeout_seconds,
        )
    began = trio.current_time()
    peer = peer_of(stream.socket)
    log = naming(peer, service.log, session_id)
    who = await _introduced(stream, peer, listen, log)
    if who is None:
        service.counts.handshakes[reached, Became.INTRODUCED_WRONGLY] += 1
        return False
    if who is not peer:
        log = naming(who, log, session_id).bind(via=peer.peer)
    return await _served(
        NegotiatingClient(service, listen, reached, stream, tls, who, session_id, log), began
    )


async def serve_given(
    service: Service,
    listen: Listen,
    stream: trio.SocketStream,
    given: Given,
    tls: ChooseSession | None = None,
    *,
    reached: str | None = None,
) -> bool:
    """Serve one that another process has handed over, which was tuned and introduced there; else like
    `serve_client`.
    """
    log = naming(given.identity, service.log, given.session_id)
    client = NegotiatingClient(
        service,
        listen,
        reached or str(listen.uri),
        stream,
        tls,
        given.identity,
        given.session_id,
        log,
        given,
    )
    return await _served(client, trio.current_time() - given.seconds)


async def _served(client: NegotiatingClient, began: float) -> bool:
    """Serve a client that connected at `began`."""
    log, listen = client.log, client.listen
    handshakes, listener = client.handshakes, client.listener
    became = Became.LEFT
    try:
        if listen.style == "oldstyle":
            opened = await client.greet_oldstyle(listen.export)
        else:
            opened = await client.negotiate(began)
    except PeerClosed as closed:
        log.debug("client left during negotiation", why=str(closed))
    except TlsFailed as error:
        became = Became.TLS_FAILED
        log.warning("client hung up on", why=str(error))
    except (Hangup, WireError) as error:
        became = Became.HUNG_UP_ON
        log.info("client hung up on", why=str(error))
    except trio.TooSlowError:
        became = Became.TOO_SLOW
        text = f"the negotiation took longer than {client.time.seconds:g} s"
        log.info("client hung up on", why=text)
    else:
        if opened is not None:
            became = Became.SESSION
            handshakes[listener, became] += 1
            await client.transmit(opened)
        elif client.home is not None:
            became = Became.HANDED_OVER
            await client.home.relay(client.stream)
    finally:
        if became is not Became.SESSION:
            handshakes[listener, became] += 1
        await client.aclose()
    return client.asked


def naming(who: Identity, log: FilteringBoundLogger, session_id: str) -> FilteringBoundLogger:
    """Give a log whose lines are of a client, which it knows by this id."""
    return log.bind(session=session_id, client=who.peer, **{ORIGIN: who.origin})


async def _introduced(
    stream: trio.SocketStream, peer: Identity, listen: Listen, log: FilteringBoundLogger
) -> Identity | None:
    """Give who the client is. None: we have hung up on it."""
    try:
        return await introduced(stream, peer, listen)
    except PeerClosed as closed:
        log.debug("client left during negotiation", why=str(closed))
    except (Hangup, WireError) as error:
        log.info("client hung up on", why=str(error))
    await close_stream(stream)
    return None
