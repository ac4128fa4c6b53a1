"""A conversation gives the same events whether it polls for them or is woken, and others have their turn."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from gateway.net import drive
from gateway.net.drive import MOMENTS, SENDS_A_TURN, Conversation, PeerClosed
from gateway.protocol.errors import Hangup
from gateway.wire.errors import WireError
from tests.embedded.peers import socket_pair
from tests.tools.patience import HANG_SECONDS

EXCHANGES = 50


class Lines:
    """A core whose events are lines, each of which it has asked for."""

    def __init__(self) -> None:
        self.received = b""
        self.asks = b""

    def receive(self, data: bytes) -> None:
        self.received += data

    def next_event(self) -> bytes | None:
        line, end, rest = self.received.partition(b"\n")
        if not end:
            return None
        self.received = rest
        return line

    def data_to_send(self) -> bytes:
        data, self.asks = self.asks, b""
        return data


class Clock:
    """Counts how often it was waited for."""

    def __init__(self) -> None:
        self.runs = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.runs += 1
        yield


def answer(sock: socket.socket, questions: int) -> None:
    """Be the peer, elsewhere: send back so many lines, one by one, and close."""
    with sock, sock.makefile("rb") as lines:
        for _ in range(questions):
            sock.sendall(lines.readline())


@contextmanager
def peer(questions: int = EXCHANGES) -> Iterator[trio.SocketStream]:
    near, far = socket.socketpair()
    thread = threading.Thread(target=answer, args=(far, questions))
    thread.start()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
    try:
        yield stream
    finally:
        stream.socket.close()
        thread.join(HANG_SECONDS)


async def ask(stream: trio.SocketStream, clock: Clock) -> None:
    core = Lines()
    talk: Conversation[bytes] = Conversation(stream, core)
    for number in range(EXCHANGES):
        question = b"question %d" % number
        core.asks += question + b"\n"
        assert await talk.next_event(clock) == question


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody else is ever found to be there, and any peer is quick."""
    monkeypatch.setattr(drive, "ALONE_SECONDS", math.inf)
    monkeypatch.setattr(drive, "MOMENT_SECONDS", HANG_SECONDS)
    return monkeypatch


@pytest.mark.usefixtures("quick")
async def test_who_is_alone_polls_for_a_quick_peer() -> None:
    clock = Clock()
    with peer() as stream:
        await ask(stream, clock)
    assert clock.runs == SENDS_A_TURN - 1  # then it was others' turn for the first time


async def test_who_is_not_alone_is_woken(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(drive, "ALONE_SECONDS", 0)
    clock = Clock()
    with peer() as stream:
        await ask(stream, clock)
    assert clock.runs == EXCHANGES


async def test_who_has_a_slow_peer_is_woken(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(drive, "MOMENT_SECONDS", 0)
    with peer() as stream:
        await ask(stream, Clock())


async def test_others_have_their_turn(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(drive, "TURN_SECONDS", 0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with peer() as stream:
            await ask(stream, Clock())
        nursery.cancel_scope.cancel()
    assert turns >= EXCHANGES - SENDS_A_TURN


async def test_who_pipelines_leaves_others_their_turn() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    near, far = socket_pair()
    core = Lines()
    core.received = b"question\n" * EXCHANGES
    talk: Conversation[bytes] = Conversation(near, core)
    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(EXCHANGES):
            core.asks = b"answer\n"
            assert await talk.next_event() == b"question"
        nursery.cancel_scope.cancel()
    assert turns >= EXCHANGES // (2 * SENDS_A_TURN)


async def test_who_sends_in_many_pieces_is_on_the_clock(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(drive, "RECEIVE_BYTES", 1)
    clock = Clock()
    with peer() as stream:
        await ask(stream, clock)
    assert clock.runs >= EXCHANGES * (len("question 0") + 1 - MOMENTS)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [WireError("nonsense"), Hangup("no more of this")])
async def test_who_is_wrong_and_has_gone_is_wrong(error: Exception) -> None:
    """Nobody is there any more to be told; that is not why the conversation ends."""

    class Wrong(Lines):
        def next_event(self) -> bytes | None:
            self.asks = b"you are wrong"
            raise error

    near, far = socket_pair()
    await trio.aclose_forcefully(far)
    talk: Conversation[bytes] = Conversation(near, Wrong())
    with pytest.raises(type(error)):
        await talk.next_event()
    await trio.aclose_forcefully(near)


async def test_a_quick_peer_that_leaves_is_missed() -> None:
    with peer(questions=EXCHANGES // 2) as stream, pytest.raises(PeerClosed):
        await ask(stream, Clock())
