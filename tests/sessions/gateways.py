"""A gateway inside the test: real sockets, the real hub, an embedded server as upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import structlog
import trio

from gateway.clients.client import serve_client
from gateway.config import parse
from gateway.embedded import Server
from gateway.hub.hub import Hub
from gateway.net.dial import DialError
from gateway.sessions.service import Service
from gateway.sessions.upkeep import see_to_upstreams
from gateway.upstream.backends import Backend
from gateway.upstream.mode import Mode
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server as Upstream
from tests.embedded.peers import Client, socket_pair
from tests.tools.defaults import SURVIVAL, mode_with
from tests.tools.patience import HANG_SECONDS

CONFIG = """
drain-seconds = {drain_seconds}
[[listen]]
uri = "nbd://127.0.0.1:0"
handshake-seconds = {handshake_seconds}
{listen}
[upstream.main]
uri = "nbd://127.0.0.1"
{upstream}
"""
EXPORT = """
[[export]]
name = "*"
upstream = "main"
"""

ENDS_WITH_ITS_LINK = mode_with(survival=replace(SURVIVAL, reconnect_seconds=0))
"""Sessions are not carried over when their links die."""


@dataclass
class Gateway:
    service: Service
    nursery: trio.Nursery

    def client(self) -> Client:
        """A new connection to the gateway."""
        ours, theirs = socket_pair()
        listen = self.service.config.listen[0]
        self.nursery.start_soon(partial(serve_client, self.service, listen), theirs)
        return Client(ours)


@asynccontextmanager
async def gateway_before(
    server: Server | Callable[[], trio.SocketStream],
    *,
    drain_seconds: float = 5,
    handshake_seconds: float = 5,
    negotiate_seconds: float = 5,
    listen: str = "",
    upstream: str = "",
    export: str = "",
    seconds: float = HANG_SECONDS,
    hub: Hub | None = None,
    refuse: Callable[[], bool] = lambda: False,
    places: int = 1,
    mode: Mode | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway before a server; when it ends, every client has to have been let go.

    `listen` is more TOML for its `[[listen]]`, `upstream` for its `[upstream.main]`; with `export` there is an
    `[[export]]` for all names that says it. The server is down while it is to `refuse`, and has so many
    `places`; `mode` is its `connections` and what belongs to it. After `seconds` the test has failed.
    """
    async with trio.open_nursery() as servers, trio.open_nursery() as hubs:

        async def connect() -> trio.SocketStream:
            if refuse():
                raise DialError("nobody listens", down=True)
            if not isinstance(server, Server):
                return server()
            ours, theirs = socket_pair()
            servers.start_soon(server.serve, theirs)
            return ours

        config = parse(
            CONFIG.format(
                drain_seconds=drain_seconds,
                handshake_seconds=handshake_seconds,
                listen=listen,
                upstream=upstream,
            )
            + (EXPORT + export if export else ""),
            "test",
        )
        log = structlog.wrap_logger(structlog.testing.CapturingLogger())
        settings = config.upstream["main"].model_copy(
            update={"negotiate_seconds": negotiate_seconds}
        )
        # Who is led to the same server is led to the same disks, as by an address.
        backend = Backend(settings.uri, (connect,) * places, disks=server)  # type: ignore[arg-type]
        main = Upstream(Recipe("main", settings, backend))
        if mode is not None:
            main.mode = mode
        upstreams = {"main": main}
        service = Service(config, upstreams, hub or Hub(), log)
        hubs.start_soon(service.hub.run)
        hubs.start_soon(see_to_upstreams, service)
        with trio.fail_after(seconds):
            async with trio.open_nursery() as clients:
                yield Gateway(service, clients)
        assert not service.hub.sessions
        assert not service.negotiations
        hubs.cancel_scope.cancel()
        servers.cancel_scope.cancel()
    service.hub.close()
