"""A name with several addresses: which of them is connected to."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from gateway.net.dial import DialError, Dialler
from gateway.uri import parse_nbd_uri


class Resolver(trio.abc.HostnameResolver):
    """Knows one name, whatever port is asked for."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        assert host == b"disks.example"
        if self.meanwhile is not None:
            await self.meanwhile()
        if not self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.addresses
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.fixture
async def resolver() -> Resolver:
    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


@pytest.fixture
def listeners() -> Iterator[dict[str, socket.socket]]:
    """Two servers on one port."""
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    second = socket.create_server(("127.0.0.2", port))
    yield {"127.0.0.1": first, "127.0.0.2": second}
    first.close()
    second.close()


def dialler_to(listeners: dict[str, socket.socket]) -> Dialler:
    port = listeners["127.0.0.1"].getsockname()[1]
    return Dialler(parse_nbd_uri(f"nbd://disks.example:{port}"))


async def reached(dialler: Dialler, *, same_storage: bool = False) -> str:
    async with await dialler.connect(same_storage=same_storage) as stream:
        address: str = stream.socket.getpeername()[0]
        return address


async def test_the_first_address_that_answers_is_kept_to(
    resolver: Resolver, listeners: dict[str, socket.socket]
) -> None:
    dialler = dialler_to(listeners)
    resolver.addresses = ["127.0.0.2", "127.0.0.1"]
    assert await reached(dialler) == "127.0.0.2"
    resolver.addresses = ["127.0.0.1", "127.0.0.2"]
    assert await reached(dialler) == "127.0.0.2"
    listeners["127.0.0.2"].close()
    with pytest.raises(DialError) as caught:
        await reached(dialler)
    assert caught.value.down
    assert "Connection refused (127.0.0.2, the address that was found first, is kept to)" in str(
        caught.value
    )


async def test_until_one_answers_all_are_tried(
    resolver: Resolver, listeners: dict[str, socket.socket]
) -> None:
    dialler = dialler_to(listeners)
    resolver.addresses = ["127.0.0.3", "127.0.0.1"]
    assert await reached(dialler) == "127.0.0.1"


async def test_two_that_connect_first_at_once_end_up_at_one_address(
    resolver: Resolver, listeners: dict[str, socket.socket]
) -> None:
    """While the first looks the name up, the second has found another address and keeps to it."""
    dialler = dialler_to(listeners)

    async def meanwhile() -> None:
        resolver.addresses, resolver.meanwhile = ["127.0.0.2"], None
        assert await reached(dialler) == "127.0.0.2"
        resolver.addresses = ["127.0.0.1"]

    resolver.meanwhile = meanwhile
    assert await reached(dialler) == "127.0.0.2"


async def test_with_same_storage_the_others_are_as_good(
    resolver: Resolver, listeners: dict[str, socket.socket]
) -> None:
    dialler = dialler_to(listeners)
    resolver.addresses = ["127.0.0.2", "127.0.0.1"]
    assert await reached(dialler, same_storage=True) == "127.0.0.2"
    resolver.addresses = ["127.0.0.1", "127.0.0.2"]
    assert await reached(dialler, same_storage=True) == "127.0.0.2"
    listeners["127.0.0.2"].close()
    assert await reached(dialler, same_storage=True) == "127.0.0.1"
    assert await reached(dialler) == "127.0.0.1"


@pytest.mark.parametrize(
    ("uri", "why", "down"),
    [
        ("nbd+unix:///?socket=/nowhere/at/all", "No such file", True),
        ("nbd://127.0.0.3:1", "Connection refused", True),
        ("nbd://disks.example", "Temporary failure", True),
    ],
)
async def test_what_may_pass_is_told_apart(
    resolver: Resolver, uri: str, why: str, down: bool
) -> None:
    with pytest.raises(DialError, match=why) as caught:
        await Dialler(parse_nbd_uri(uri)).connect()
    assert caught.value.down is down


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ENOTCONN, errno.ECONNRESET])
async def test_who_closes_the_connection_before_we_know_that_it_is_there_is_down(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise OSError(error, "closed")

    with monkeypatch.context() as patch:
        patch.setattr(trio, "open_unix_socket", closed)
        with pytest.raises(DialError, match="closed") as caught:
            await Dialler(parse_nbd_uri("nbd+unix:///?socket=/x")).connect()
    assert caught.value.down


async def test_our_own_want_is_not_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(trio, "open_unix_socket", none_left)
        with pytest.raises(DialError, match="Too many open files") as caught:
            await Dialler(parse_nbd_uri("nbd+unix:///?socket=/x")).connect()
    assert not caught.value.down


@pytest.mark.parametrize("host", ["disk..example", ".example", "x" * 64])
async def test_what_is_no_name_is_unreachable(host: str) -> None:
    """No URI has such a host, and who looks names up raises no OSError for it."""
    uri = replace(parse_nbd_uri("nbd://h"), host=host)
    with pytest.raises(DialError, match="no name of a host") as caught:
        await Dialler(uri).connect()
    assert not caught.value.down
