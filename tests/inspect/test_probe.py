"""What is found out of a server to which there is one connection, ever."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography.x509.oid import ExtendedKeyUsageOID
from trio.testing import MockClock

from gateway.embedded import MemoryDisk, Server
from gateway.embedded.personality import PLAIN
from gateway.inspect.probe import FOR_CLIENTS, CannotProbe, probe
from gateway.tls.credentials import server_credentials
from gateway.tls.issuing import issue, new_authority
from gateway.uri import parse_upstream
from tests.embedded.peers import listening, serving_once
from tests.tls.handshakes import write

SIZE = 1 << 20


@pytest.mark.parametrize("oldstyle", [True, False])
async def test_one_connection_is_for_the_export_and_not_for_the_list(oldstyle: bool) -> None:
    """qemu-nbd up to 3.0 without -x and -t ends with it."""
    server = Server({"": MemoryDisk(SIZE)}, replace(PLAIN, oldstyle=oldstyle))
    async with serving_once(server) as port:
        found = await probe(parse_upstream(f"nbd://127.0.0.1:{port}"))
    [export] = found.exports
    assert export.export.size == SIZE
    assert any("is gone now" in note for note in export.notes) == oldstyle
    assert found.listed is None


@pytest.mark.parametrize("purpose", ["CLIENT_AUTH", "SERVER_AUTH"])
async def test_a_certificate_that_is_for_clients_alone_is_noted(
    tmp_path: Path, purpose: str
) -> None:
    """Who goes there directly may be refused it."""
    now = dt.datetime.now(dt.UTC)
    ca = new_authority(10, now)
    own = issue(ca, "s", ["localhost"], getattr(ExtendedKeyUsageOID, purpose), 10, now)
    for name, content in (ca.files("ca") | own.files("server")).items():
        write(tmp_path / name, content)
    server = Server({"": MemoryDisk(SIZE)})
    server.tls = server_credentials(tmp_path, verify_client=False).session
    async with listening(server, tmp_path) as uri:
        socket = uri.partition("?")[2]
        more = f"&tls-certificates={tmp_path}&tls-hostname=localhost"
        found = await probe(parse_upstream(f"nbds+unix:///?{socket}{more}"))
    [export] = found.exports
    assert (FOR_CLIENTS in export.notes) == (purpose == "CLIENT_AUTH")


async def test_a_list_is_not_waited_for_twice(autojump_clock: MockClock) -> None:
    """Of a server that is silent nothing else is to be had."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    kept: list[trio.SocketStream] = []

    async def never_answers() -> None:
        while True:
            kept.append(await listener.accept())

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(never_answers)
        port = listener.socket.getsockname()[1]
        with pytest.raises(CannotProbe, match="not greeted for 30 s"):
            await probe(parse_upstream(f"nbd://127.0.0.1:{port}"), every_export=True)
        nursery.cancel_scope.cancel()
    assert len(kept) == 1
    for stream in kept:
        await stream.aclose()
