"""Addresses to listen on that the command line's own tests do not reach."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest
import trio

from gateway.config import parse
from gateway.identity import Identity, UnixPeer
from gateway.net.dial import DialError, dial
from gateway.net.listen import ListenError, open_listener
from gateway.net.options import peer_of
from gateway.uri import parse_nbd_uri
from tests.tools.patience import HANG_SECONDS

LISTEN = '[[listen]]\nuri = "{}"\n[upstream.main]\nuri = "nbd://127.0.0.1"\n'


async def test_abstract_unix_sockets() -> None:
    uri = f"nbd+unix:///?socket=%00nbd-gateway-test-{os.getpid()}"
    config = parse(LISTEN.format(uri), "test")
    for _ in range(2):  # nothing is left over
        listener = await open_listener(config.listen[0])
        async with await dial(listener.uri) as client, await listener.sockets[0].accept() as server:
            await client.send_all(b"x")
            assert await server.receive_some(1) == b"x"
            us = UnixPeer(os.getpid(), os.getuid(), os.getgid())
            assert peer_of(server.socket) == Identity(str(us), unix=us)
        await listener.aclose()
    with trio.fail_after(HANG_SECONDS):
        await listener.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_every_address_is_of_both_families(host: str) -> None:
    config = parse(LISTEN.format("nbd://[::]:0"), "test")
    listener = await open_listener(config.listen[0])
    uri = parse_nbd_uri(f"nbd://{host}:{listener.uri.port}")
    async with await dial(uri), await listener.sockets[0].accept() as server:
        # In the log an IPv4 client has its own address, and not ::ffff:127.0.0.1.
        who = peer_of(server.socket)
        assert who.peer.startswith(f"{host}:")
        assert str(who.address) == host.strip("[]")
    await listener.aclose()


async def test_a_system_that_does_not_let_families_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    config = parse(LISTEN.format("nbd://[::]:0"), "test")
    listener = await open_listener(config.listen[0])
    async with await dial(parse_nbd_uri(f"nbd://[::1]:{listener.uri.port}")):
        pass
    with pytest.raises(DialError):
        await dial(parse_nbd_uri(f"nbd://127.0.0.1:{listener.uri.port}"))
    await listener.aclose()


@pytest.mark.parametrize("host", ["disk..example", ".example", "x" * 64])
async def test_what_is_no_name_cannot_be_listened_on(host: str) -> None:
    """No URI has such a host, and who looks names up raises no OSError for it."""
    [settings] = parse(
        '[[listen]]\nuri = "nbd://h"\n[upstream.m]\nuri = "memory:1M"\n', "test"
    ).listen
    settings = settings.model_copy(update={"uri": replace(settings.uri, host=host)})
    with pytest.raises(ListenError, match="no name of a host"):
        await open_listener(settings)
