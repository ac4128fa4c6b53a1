"""Clients behind a load balancer that speaks the PROXY protocol: who they are, and that no byte is lost."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

from gateway.clients.client import serve_client
from gateway.config import Listen
from gateway.embedded import MemoryDisk, Server
from gateway.log import ORIGIN
from gateway.wire.constants import OPTION_REPLY_MAGIC, Cmd, Opt, Rep
from gateway.wire.handshake import (
    encode_greeting,
    encode_info_request,
    encode_option,
    encode_option_reply,
)
from gateway.wire.proxy import HEAD, SIGNATURE
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import Gateway, gateway_before

TRUSTING = 'proxy-protocol = ["127.0.0.0/8", "::1"]'
SIZE = 1 << 20
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 10809\r\n"
V2 = HEAD.pack(SIGNATURE, 0x21, 0x11, 15) + b"\xc0\0\2\1\xc6\x33\x64\2\xdc\x04\x2a\x39\x04\0\0"
V2_UNIX = HEAD.pack(SIGNATURE, 0x21, 0x31, 216) + bytes(216)
LOCAL = HEAD.pack(SIGNATURE, 0x20, 0, 0)
HELLO = b"\0\0\0\3"
ABORT = encode_option(Opt.ABORT)
WRONG = HELLO + encode_option(Opt.GO, encode_info_request("x", [])) + ABORT

Line = MutableMapping[str, Any]


def server() -> Server:
    return Server({"": MemoryDisk(SIZE)})


@asynccontextmanager
async def connected(gateway: Gateway, host: str = "127.0.0.1") -> AsyncIterator[trio.SocketStream]:
    """A connection to the gateway over TCP, whoever speaks first."""
    [listener] = await trio.open_tcp_listeners(0, host=host)
    async with listener:
        ours = await trio.open_tcp_stream(host, listener.socket.getsockname()[1])
        ours.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs = await listener.accept()
    gateway.nursery.start_soon(
        serve_client, gateway.service, gateway.service.config.listen[0], theirs
    )
    async with ours:
        yield ours


def name_of(stream: trio.SocketStream) -> str:
    host, port = stream.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def rest(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


@asynccontextmanager
async def logged(
    lines: list[Line], listen: str = TRUSTING, **settings: float
) -> AsyncIterator[Gateway]:
    """A gateway, and what it logs, except how it repairs its upstream."""
    with structlog.testing.capture_logs() as all_lines:
        async with gateway_before(server(), listen=listen, **settings) as gateway:  # type: ignore[arg-type] # all are numbers
            yield gateway
    lines += [line for line in all_lines if "client" in line]


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
async def test_a_session(header: bytes, host: str, pieces: str) -> None:
    lines: list[Line] = []
    async with logged(lines) as gateway, connected(gateway, host) as stream:
        via = name_of(stream)
        parts = [header] if pieces == "whole" else [bytes([byte]) for byte in header]
        for part in parts:
            await stream.send_all(part)
        client = Client(stream)
        await client.go()
        assert not await client.error(Cmd.WRITE, 4096, data=b"x" * 4096)
        assert await client.read(4096, 4096) == b"x" * 4096
        await client.send(Cmd.DISC)
        assert not await client.rest()
    assert [line["event"] for line in lines] == ["session begins", "session ended"]
    assert {(line["client"], line["via"]) for line in lines} == {("192.0.2.1:56324", via)}
    # Its lines count for it, not for the proxy.
    assert {line[ORIGIN] for line in lines} == {"192.0.2.1"}


@pytest.mark.parametrize("header", [V1, V2, LOCAL, b"PROXY UNKNOWN\r\n", V2_UNIX])
async def test_what_comes_in_one_piece_with_it_is_the_clients(header: bytes) -> None:
    lines: list[Line] = []
    async with logged(lines) as gateway, connected(gateway) as stream:
        listing = encode_option(Opt.LIST)
        await stream.send_all(header + HELLO + 20 * listing + ABORT)
        said = await rest(stream)
        # Each LIST names the one export, and ends.
        assert said.count(OPTION_REPLY_MAGIC.to_bytes(8)) == 2 * 20 + 1
        assert said.endswith(encode_option_reply(Opt.ABORT, Rep.ACK))
    assert [line["event"] for line in lines] == ["exports listed"]


SPEAKS_FOR_ITSELF = [
    LOCAL,
    b"PROXY UNKNOWN\r\n",
    HEAD.pack(SIGNATURE, 0x21, 0x00, 0),
    HEAD.pack(SIGNATURE, 0x21, 0x12, 12) + V2[16:28],
]


async def refused_line(header: bytes, host: str = "127.0.0.1", listen: str = TRUSTING) -> Line:
    """What is logged of a client that asks for what there is not."""
    lines: list[Line] = []
    async with logged(lines, listen) as gateway, connected(gateway, host) as stream:
        own = name_of(stream)
        await stream.send_all(header + WRONG)
        await rest(stream)
    [line] = lines
    return {**line, "own": line["client"] == own, "through": line.get("via") == own}


@pytest.mark.parametrize("header", SPEAKS_FOR_ITSELF)
async def test_a_header_without_a_client(header: bytes) -> None:
    line = await refused_line(header)
    assert line["event"] == "client refused"
    assert (line["own"], "via" in line) == (True, False)


async def test_a_client_of_a_unix_socket_has_not_the_load_balancers_address() -> None:
    line = await refused_line(V2_UNIX)
    assert (line["client"], line["through"]) == ("a Unix socket", True)


async def test_a_mapped_address() -> None:
    line = await refused_line(b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 5 6\r\n")
    assert (line["client"], line["through"]) == ("192.0.2.1:5", True)


@pytest.mark.parametrize(
    ("host", "trusted", "is_trusted"),
    [
        ("127.0.0.1", ["127.0.0.1"], True),
        ("127.0.0.1", ["10.0.0.0/8", "127.0.0.0/30"], True),
        ("127.0.0.1", ["127.0.0.2"], False),
        ("127.0.0.1", ["::/0"], False),
        ("::1", ["0.0.0.0/0"], False),
        ("::1", ["::1"], True),
    ],
)
async def test_whose_word_counts(host: str, trusted: Sequence[str], is_trusted: bool) -> None:
    """From elsewhere a header is what else it would be: an NBD client that begins wrongly."""
    listen = f"proxy-protocol = {[*trusted]}"
    line = await refused_line(V1, host, listen)
    if is_trusted:
        assert (line["event"], line["client"]) == ("client refused", "192.0.2.1:56324")
    else:
        assert (line["event"], line["own"]) == ("client hung up on", True)
        assert "client flags" in line["why"]
        line = await refused_line(b"", host, listen)
        assert (line["event"], line["own"]) == ("client refused", True)


async def test_without_the_key_nobodys_word_counts() -> None:
    line = await refused_line(V1, listen="")
    assert (line["event"], line["own"]) == ("client hung up on", True)


async def unix_line(header: bytes, trusted: tuple[str, ...] | None) -> Line:
    lines: list[Line] = []
    async with logged(lines, "") as gateway:
        ours, theirs = socket_pair()
        [listen] = gateway.service.config.listen
        listen = Listen.model_copy(listen, update={"proxy_protocol": trusted})
        gateway.nursery.start_soon(serve_client, gateway.service, listen, theirs)
        async with ours:
            await ours.send_all(header + WRONG)
            await rest(ours)
    [line] = lines
    return line


async def test_a_unix_socket() -> None:
    line = await unix_line(V1, ("unix",))
    assert line["client"] == "192.0.2.1:56324"
    assert line["via"].startswith("unix:pid=")
    line = await unix_line(LOCAL, ("unix",))
    assert line["client"].startswith("unix:pid=")
    line = await unix_line(b"", None)
    assert line["client"].startswith("unix:pid=")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HELLO, r"expected a PROXY header, got b'\x00\x00\x00\x03'"),
        (b"GET / HTTP/1.1\r\n\r\n", "expected a PROXY header, got b'GET / HTTP/1.1"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 x\r\n", "expected a port, 0 to 65535, in a PROXY line"),
    ],
)
async def test_what_is_no_header(data: bytes, why: str) -> None:
    lines: list[Line] = []
    async with logged(lines) as gateway, connected(gateway) as stream:
        own = name_of(stream)
        await stream.send_all(data)
        said = None
        try:
            said = await rest(stream)
        except trio.BrokenResourceError:  # with bytes of ours unread, it is a reset
            said = b""
        assert said == b""
    [line] = lines
    assert (line["event"], line["client"], line["log_level"]) == ("client hung up on", own, "info")
    assert line["why"].startswith(why)


@pytest.mark.parametrize(
    ("data", "level", "why"),
    [
        (b"", "debug", "the peer closed the connection before a PROXY header"),
        (b"PROXY TC", "info", "the PROXY header ends after b'PROXY TC'"),
        (V2[:20], "info", f"the PROXY header ends after {V2[:20]!r}"),
    ],
)
async def test_who_leaves_before_its_end(data: bytes, level: str, why: str) -> None:
    lines: list[Line] = []
    async with logged(lines) as gateway, connected(gateway) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        assert await rest(stream) == b""
    [line] = lines
    assert (line["log_level"], line["why"]) == (level, why)


async def test_a_client_that_waits_for_the_greeting(autojump_clock: MockClock) -> None:
    """A load balancer that sends no header: nothing is said to its client, and not for ever."""
    lines: list[Line] = []
    async with logged(lines, handshake_seconds=7) as gateway, connected(gateway) as stream:
        await stream.send_all(b"PRO")
        began = trio.current_time()
        assert await rest(stream) == b""
        assert trio.current_time() - began == pytest.approx(7)
    [line] = lines
    assert line["why"] == "expected a PROXY header within 7 s, got b'PRO'"


async def test_its_time_is_the_handshakes(autojump_clock: MockClock) -> None:
    lines: list[Line] = []
    async with logged(lines, handshake_seconds=7) as gateway:
        began = trio.current_time()
        async with connected(gateway) as stream:
            await trio.sleep(5)
            await stream.send_all(V1)
            assert await rest(stream) == encode_greeting(3)
            assert trio.current_time() - began == pytest.approx(7)
    [line] = lines
    assert line["client"] == "192.0.2.1:56324"
    assert line["why"] == "the negotiation took longer than 7 s"


async def test_oldstyle() -> None:
    lines: list[Line] = []
    listen = TRUSTING + '\nstyle = "oldstyle"'
    async with logged(lines, listen) as gateway, connected(gateway) as stream:
        await stream.send_all(V1)
        assert (await stream.receive_some(8)) == b"NBDMAGIC"
    assert lines[0]["event"] == "session begins"
    assert lines[0]["client"] == "192.0.2.1:56324"
