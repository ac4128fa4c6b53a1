"""From one gateway to another: who comes, what is answered, and that no byte of a client's is lost between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.fleet.door import DIAL_SECONDS, NotTaken, answer, ask_if_kept, lead, received
from gateway.handover.given import DiskSite, Given
from gateway.handover.message import NotUnderstood
from gateway.identity import Identity
from gateway.net.secure import TlsError, TlsStream
from gateway.tls.credentials import client_credentials, server_credentials
from gateway.uri import NbdUri, parse_nbd_uri
from gateway.wire.errors import WireError
from gateway.wire.limits import MAX_STRING_BYTES
from gateway.wire.proxy import ProxySource, decode_header, encode_header
from tests.fleet.running import write_pki
from tests.tools.patience import HANG_SECONDS

SITE = DiskSite(frozenset({("tcp", "10.0.0.5", "10809")}), "d")
GIVEN = Given(0, "abc-1", ("TCP", "h", 1), Identity.at("192.0.2.1", 7), SITE, 0.0, None, way="w-1")

Serve = Callable[[TlsStream, Given | str], Awaitable[None]]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("pki")
    write_pki(at)
    return at


@asynccontextmanager
async def door(pki: Path, serve: Serve, failed: list[Exception]) -> AsyncIterator[NbdUri]:
    """Have a home that listens."""
    credentials = server_credentials(pki)

    async def comes(plain: trio.SocketStream) -> None:
        try:
            await serve(*await received(plain, credentials))
        except (TlsError, WireError, NotUnderstood, trio.BrokenResourceError) as error:
            failed.append(error)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, comes, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield parse_nbd_uri(f"nbds://127.0.0.1:{port}")
        nursery.cancel_scope.cancel()


async def led(pki: Path, serve: Serve, given: Given = GIVEN) -> tuple[bytes, list[Exception]]:
    """Lead a client; give what was said after the answer."""
    failed: list[Exception] = []
    async with door(pki, serve, failed) as uri:
        stream = await lead(
            uri, client_credentials(pki, hostname="127.0.0.1"), given, 10, HANG_SECONDS
        )
        said = b""
        while more := await stream.receive_some():
            said += more
        await stream.aclose()
    return said, failed


async def test_what_is_known_of_a_client_comes_with_it(pki: Path) -> None:
    came: list[Given | str] = []

    async def serve(stream: TlsStream, given: Given | str) -> None:
        came.append(given)
        await answer(stream, "taken")
        await stream.aclose()

    assert (await led(pki, serve))[0] == b""
    [given] = came
    assert isinstance(given, Given)
    assert (given.identity, given.site, given.session_id) == (GIVEN.identity, SITE, "abc-1")
    assert given.way == "w-1"


async def test_whatever_a_client_may_be_called_goes_along(pki: Path) -> None:
    """The longest name of an export, of letters that JSON writes with twelve."""
    came: list[Given | str] = []

    async def serve(stream: TlsStream, given: Given | str) -> None:
        came.append(given)
        await answer(stream, "taken")
        await stream.aclose()

    site = DiskSite(SITE.where, "\U0001f4be" * (MAX_STRING_BYTES // 4))
    names = tuple(f"host-{number}.example.org" for number in range(500))
    identity = replace(GIVEN.identity, dns_names=names)
    given = replace(GIVEN, site=site, identity=identity)
    await led(pki, serve, given)
    assert came == [given]


async def test_what_the_home_says_with_its_answer_is_its_greeting(pki: Path) -> None:
    async def serve(stream: TlsStream, _given: Given | str) -> None:
        await stream.send_all(b'{"said": "taken", "why": ""}\na greeting')
        await stream.aclose()

    assert (await led(pki, serve))[0] == b"a greeting"


@pytest.mark.parametrize(
    ("said", "again", "expected"),
    [
        (b'{"said": "elsewhere", "why": "x"}\n', True, "x"),
        (b'{"said": "refused", "why": "x"}\n', False, "x"),
        (b"[]\n", True, "expected an answer of JSON"),
        (b"hello\n", True, "expected an answer of JSON"),
        (b"", True, "without an answer"),
        (b"x" * 5000, True, "at most 4096 bytes"),
    ],
)
async def test_a_client_that_is_not_taken(
    pki: Path, said: bytes, again: bool, expected: str
) -> None:
    async def serve(stream: TlsStream, _given: Given | str) -> None:
        await stream.send_all(said)
        await stream.aclose()

    raised: list[NotTaken] = []
    async with door(pki, serve, []) as uri:
        try:
            await lead(uri, client_credentials(pki, hostname="127.0.0.1"), GIVEN, 10, HANG_SECONDS)
        except NotTaken as error:
            raised.append(error)
    assert expected in str(raised[0])
    assert raised[0].again is again


@pytest.mark.parametrize(("said", "kept"), [("kept", True), ("not known", False), ("", False)])
async def test_a_home_is_asked_whether_it_has_kept_all(pki: Path, said: str, kept: bool) -> None:
    asked: list[Given | str] = []

    async def serve(stream: TlsStream, client: Given | str) -> None:
        asked.append(client)
        if said:
            await answer(stream, said)
        await stream.aclose()

    credentials = client_credentials(pki, hostname="127.0.0.1")
    async with door(pki, serve, []) as uri:
        assert await ask_if_kept(uri, credentials, "w-1", 10) is kept
    assert asked == ["w-1"]
    assert not await ask_if_kept(parse_nbd_uri("nbds://127.0.0.1:1"), credentials, "w-1", 10)


@pytest.mark.parametrize("leads", [True, False])
async def test_a_home_that_is_stopped_after_tls_is_given_up(
    pki: Path, leads: bool, mock_clock: trio.testing.MockClock
) -> None:
    came, taken = trio.Event(), list[str]()

    async def serve(_stream: TlsStream, _given: Given | str) -> None:
        came.set()
        await trio.sleep_forever()

    credentials = client_credentials(pki, hostname="127.0.0.1")

    async def ask(uri: NbdUri) -> None:
        if not leads:
            taken.append(str(await ask_if_kept(uri, credentials, "w-1", 10)))
            return
        try:
            await lead(uri, credentials, GIVEN, 10, DIAL_SECONDS)
        except NotTaken as error:
            taken.append(f"{error}, again {error.again}")

    async with door(pki, serve, []) as uri, trio.open_nursery() as asking:
        asking.start_soon(ask, uri)
        await came.wait()
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(DIAL_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == [f"{uri}: it does not answer, again True" if leads else "False"]


async def test_nobody_there() -> None:
    uri, credentials = parse_nbd_uri("nbds://127.0.0.1:1"), client_credentials(hostname="127.0.0.1")
    with pytest.raises(NotTaken, match="cannot connect to") as caught:
        await lead(uri, credentials, GIVEN, 10, HANG_SECONDS)
    assert caught.value.again


async def test_a_stranger_is_not_believed(pki: Path, tmp_path: Path) -> None:
    """It has a certificate, of another authority, or none."""
    write_pki(tmp_path)
    (tmp_path / "ca-cert.pem").write_bytes((pki / "ca-cert.pem").read_bytes())

    async def serve(_stream: TlsStream, _given: Given | str) -> None:
        raise AssertionError

    failed: list[Exception] = []
    async with door(pki, serve, failed) as uri:
        for certificates in (tmp_path, None):
            who = client_credentials(certificates, hostname="127.0.0.1", verify_peer=False)
            with pytest.raises(NotTaken):
                await lead(uri, who, GIVEN, 10, HANG_SECONDS)
    assert [type(each) for each in failed] == [TlsError, TlsError]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode_header(None, b"{}"),
        encode_header(None, b'{"v": 1, "kind": "bye"}'),
        encode_header(None, b'{"v": 1, "kind": "client", "client": {}}'),
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    ],
)
async def test_what_is_not_understood_ends_the_connection(pki: Path, data: bytes) -> None:
    async def serve(_stream: TlsStream, _given: Given | str) -> None:
        raise AssertionError

    failed: list[Exception] = []
    async with door(pki, serve, failed) as uri:
        plain = await trio.open_tcp_stream("127.0.0.1", uri.port or 0)
        credentials = client_credentials(pki, hostname="127.0.0.1")
        stream, _admitted = await TlsStream.connect(plain, credentials.session())
        await stream.send_all(data)
        while not failed:
            await trio.sleep(0.01)
        await stream.aclose()
    assert isinstance(failed[0], (WireError, NotUnderstood))


def test_a_header_is_read_as_it_was_written() -> None:
    for address in ("192.0.2.1", "2001:db8::1"):
        source = ProxySource(Identity.at(address, 7).address, 7)
        header = decode_header(encode_header(source, b"ours"))
        assert not isinstance(header, int)
        assert header.source == source
    with pytest.raises(ValueError, match="at most 65535 bytes"):
        encode_header(None, bytes(1 << 16))
    # A stranger has less to say.
    with pytest.raises(WireError, match="at most 4096 are allowed"):
        decode_header(encode_header(None, bytes(4096)))
