"""Sockets that are handed over as systemd does it, but as descriptors that nobody else here has."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from gateway.config import Config, parse
from gateway.net.inherited import MOST, handed_over
from gateway.net.listen import Listener, ListenError, is_for, open_listener

FIRST = 700


class Starter:
    """Who starts us: hands sockets over."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.opened = ExitStack()
        self.count = 0

    def give(self, number: int) -> None:
        """What has been handed over is ours: `handed_over` closes it, or its listener does."""
        os.dup2(number, FIRST + self.count)
        self.count += 1

    def tcp(self, host: str = "127.0.0.1", *, listens: bool = True) -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self.opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.bind((host, 0))
        if listens:
            sock.listen()
        self.give(sock.fileno())
        port: int = sock.getsockname()[1]
        return port

    def unix(self, name: str | bytes = "s", kind: int = socket.SOCK_STREAM) -> None:
        sock = self.opened.enter_context(socket.socket(socket.AF_UNIX, kind))
        sock.bind(name if isinstance(name, bytes) else str(self.workdir / name))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        self.give(sock.fileno())

    def environment(self, names: str | None = None) -> dict[str, str]:
        said = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(self.count), "OTHER": "1"}
        return said if names is None else said | {"LISTEN_FDNAMES": names}

    async def handed(self, config: Config, names: str | None = None) -> list[Listener]:
        return await handed_over(config.listen, self.environment(names), FIRST)

    def left_open(self) -> list[int]:
        return [n for n in range(FIRST, FIRST + self.count) if Path(f"/proc/self/fd/{n}").exists()]


@pytest.fixture
def starter(workdir: Path) -> Iterator[Starter]:
    made = Starter(workdir)
    with made.opened:
        yield made
    assert made.left_open() == []


def listens(*tables: str) -> Config:
    text = "".join(f"[[listen]]\n{table}\n" for table in tables)
    return parse(f'{text}[upstream.m]\nuri = "memory:1M"\n', "test")


async def test_one_is_taken_by_its_name_wherever_it_listens(starter: Starter) -> None:
    port = starter.tcp()
    config = listens('uri = "nbd://gateway.example:1"\ndescriptor = "nbd"')
    [listener] = await starter.handed(config, "nbd")
    assert (listener.uri.host, listener.uri.port) == ("gateway.example", port)
    assert not os.get_inheritable(FIRST)
    connecting = await trio.open_tcp_stream("127.0.0.1", port)
    async with connecting, await listener.sockets[0].accept() as taken:
        await taken.send_all(b"x")
        assert await connecting.receive_some(1) == b"x"
    await listener.aclose()


async def test_several_of_one_name_are_one_listener(starter: Starter) -> None:
    starter.tcp()
    starter.tcp()
    [listener] = await starter.handed(listens('uri = "nbd://h"\ndescriptor = "nbd"'), "nbd:nbd")
    assert len(listener.sockets) == 2
    await listener.aclose()


@pytest.mark.parametrize("names", [None, "nbd-gateway.socket"])
async def test_one_without_a_name_of_ours_is_taken_by_its_address(
    starter: Starter, names: str | None
) -> None:
    port = starter.tcp()
    config = listens('uri = "nbd+unix:///?socket=other"', f'uri = "nbd://127.0.0.1:{port}"')
    [listener] = await starter.handed(config, names)
    assert listener.settings is config.listen[1]
    await listener.aclose()


async def test_the_file_of_a_unix_socket_stays_for_it_is_not_ours(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter.unix("s")
    monkeypatch.chdir(starter.workdir)
    [listener] = await starter.handed(listens('uri = "nbd+unix:///?socket=s"'))
    await listener.aclose()
    assert (starter.workdir / "s").exists()


async def test_one_with_an_abstract_address(starter: Starter) -> None:
    name = f"nbd-gateway-{os.getpid()}"
    starter.unix(f"\0{name}".encode())
    [listener] = await starter.handed(listens(f'uri = "nbd+unix:///?socket=%00{name}"'))
    await listener.aclose()


async def test_what_is_said_is_taken_out_of_the_environment(starter: Starter) -> None:
    starter.unix()
    environment = starter.environment("x")
    config = listens('uri = "nbd://h"\ndescriptor = "x"')
    with pytest.raises(ListenError):  # a Unix socket for TCP
        await handed_over(config.listen, environment, FIRST)
    assert environment == {"OTHER": "1"}


async def test_what_is_for_another_process_is_not_for_us() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert await handed_over(listens('uri = "nbd://h"').listen, environment, FIRST) == []
    assert environment == {}


def pipe(starter: Starter) -> None:
    reader, writer = os.pipe()
    starter.give(reader)
    os.close(reader)
    os.close(writer)


UNIX = 'uri = "nbd+unix:///?socket=s"\n'

WRONG: list[tuple[str, Callable[[Starter], object], str | None, str, str]] = [
    (
        "nobody names it",
        Starter.tcp,
        "a",
        UNIX,
        'named by no \\[\\[listen]], .*700 "a" of 127.0.0.1:',
    ),
    ("nor one without a name", lambda s: s.tcp("::1"), None, UNIX, "700 of \\[::1]:"),
    (
        "a file",
        pipe,
        "a",
        'uri = "nbd://h"\ndescriptor = "a"',
        '700 "a": .*Socket operation on non-so',
    ),
    (
        "it does not listen",
        lambda s: s.tcp(listens=False),
        "a",
        'uri = "nbd://h"\ndescriptor = "a"',
        "expected a stream socket that listens",
    ),
    (
        "datagrams",
        lambda s: s.unix(kind=socket.SOCK_DGRAM),
        "a",
        f'{UNIX}descriptor = "a"',
        "expected a stream socket that listens",
    ),
    (
        "another kind of address",
        Starter.unix,
        "a",
        'uri = "nbd://h"\ndescriptor = "a"',
        "/s': expected a socket as in nbd://h:10809, whose",
    ),
    ("too few names", Starter.tcp, "", UNIX, "named by no|expected 1 name"),
    ("too many names", Starter.tcp, "a:b", UNIX, 'LISTEN_FDNAMES: expected 1 name .*, got "a:b"'),
]


@pytest.mark.parametrize(
    ("give", "names", "table", "says"),
    [each[1:] for each in WRONG],
    ids=[each[0] for each in WRONG],
)
async def test_what_cannot_be_taken_is_refused_and_closed(
    starter: Starter,
    give: Callable[[Starter], object],
    names: str | None,
    table: str,
    says: str,
) -> None:
    give(starter)
    with pytest.raises(ListenError, match=says):
        await starter.handed(listens(table), names)
    if "LISTEN_FD" in says or give is pipe:  # it is not known what it is
        os.close(FIRST)


@pytest.mark.parametrize("count", ["x", "-1", str(MOST + 1), ""])
async def test_a_count_that_is_none_is_refused(count: str) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}
    with pytest.raises(
        ListenError, match=f'LISTEN_FDS: expected a number up to 1024, got "{count}"'
    ):
        await handed_over(listens('uri = "nbd://h"').listen, environment, FIRST)


async def test_what_is_not_open_is_refused() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with pytest.raises(ListenError, match="descriptor 700: Bad file descriptor"):
        await handed_over(listens('uri = "nbd://h"').listen, environment, FIRST)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ('socket-mode = "0660"', "the file's mode is 0600, and socket-mode is 0660; a socket unit"),
        ('socket-owner = "nobody"', "and socket-owner is nobody; a socket unit has SocketMode="),
        ('socket-owner = "nobody-of-that-name"', "there is no user"),
    ],
)
async def test_a_file_that_is_not_as_the_configuration_says_is_refused(
    starter: Starter, keys: str, says: str
) -> None:
    """Else it would be open to more than were let in by it."""
    starter.unix("s")
    (starter.workdir / "s").chmod(0o600)
    with pytest.raises(ListenError, match=says):
        await starter.handed(listens(f'uri = "nbd+unix:///?socket={starter.workdir}/s"\n{keys}'))


async def test_a_file_that_is_as_the_configuration_says_is_taken(starter: Starter) -> None:
    starter.unix("s")
    (starter.workdir / "s").chmod(0o660)
    table = f'uri = "nbd+unix:///?socket={starter.workdir}/s"\nsocket-mode = "0660"'
    [listener] = await starter.handed(listens(table))
    await listener.aclose()


async def test_one_that_was_not_handed_over_is_not_opened() -> None:
    [settings] = listens('uri = "nbd://127.0.0.1:0"\ndescriptor = "nbd"').listen
    with pytest.raises(ListenError, match='by the name of "nbd", and none of that name is'):
        await open_listener(settings)


@pytest.mark.parametrize(
    ("here", "then", "kept"),
    [
        ('uri = "nbd://h"', 'uri = "nbd://h:10809"', True),
        ('uri = "nbd://h"', 'uri = "nbd://h:1"', False),
        ('uri = "nbd://h"\ndescriptor = "a"', 'uri = "nbd://i"\ndescriptor = "a"', True),
        ('uri = "nbd://h"\ndescriptor = "a"', 'uri = "nbd://i"\ndescriptor = "b"', False),
        ('uri = "nbd://h"\ndescriptor = "a"', f'{UNIX}descriptor = "a"', False),
    ],
)
def test_a_reload_keeps_what_was_handed_over_by_the_same_name(
    here: str, then: str, kept: bool
) -> None:
    [before], [after] = listens(here).listen, listens(then).listen
    assert is_for(before, after) is kept
