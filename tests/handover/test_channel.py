"""The socket between two processes: messages whole and in order, descriptors with them, and the end after
all."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.handover import channel as module
from gateway.handover.channel import Channel, pair
from gateway.handover.message import ChannelMessage
from gateway.handover.relay import relay, stream_pair


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_messages_come_in_order_with_their_descriptors() -> None:
    before = open_descriptors()
    ours, theirs = map(Channel, pair())
    heard: list[int] = []
    all_heard = trio.Event()

    def hear(message: ChannelMessage) -> None:
        if message.kind == "bye":
            all_heard.set()
            return
        heard.append(message["number"])
        [descriptor] = message.descriptors
        assert os.read(descriptor, 10) == str(message["number"]).encode()
        os.close(descriptor)

    sent: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.run, hear)
        nursery.start_soon(ours.run, lambda _message: None)
        for number in range(300):
            readable, writable = os.pipe()
            os.write(writable, str(number).encode())
            os.close(writable)
            message = ChannelMessage("taken", {"number": number}, descriptors=(readable,))
            ours.say(message, sent=partial(sent.append, number))
        ours.say(ChannelMessage("bye"))
        await all_heard.wait()
        nursery.cancel_scope.cancel()
    assert heard == sent == list(range(300))
    ours.close()
    theirs.close()
    assert open_descriptors() <= before


@contextmanager
def without_room() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_descriptors_without_room_cost_their_message_and_no_other() -> None:
    before = open_descriptors()
    ours, theirs = map(Channel, pair())
    heard: list[str] = []
    lost: list[tuple[object, tuple[int, ...]]] = []
    all_heard = trio.Event()

    def hear(message: ChannelMessage) -> None:
        heard.append(message.kind)
        if message.kind == "bye":
            all_heard.set()

    ours.say(ChannelMessage("go"))
    ours.say(ChannelMessage("taken", {"number": 7}, descriptors=os.pipe()))
    ours.say(ChannelMessage("bye"))
    with without_room():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                theirs.run,
                hear,
                lambda message: lost.append((message["number"], message.descriptors)),
            )
            await ours.send_waiting()
            await all_heard.wait()
            nursery.cancel_scope.cancel()
    assert (heard, lost) == (["go", "bye"], [(7, ())])
    ours.close()
    assert open_descriptors() <= before


async def test_who_cannot_do_without_descriptors_hears_nothing_more() -> None:
    ours, theirs = map(Channel, pair())
    heard: list[ChannelMessage] = []
    ours.say(ChannelMessage("taken", {"number": 7}, descriptors=os.pipe()))
    ours.say(ChannelMessage("bye"))
    await ours.send_waiting()
    with without_room():
        await theirs.run(heard.append)
    assert heard == []
    assert theirs.why == "a message 'taken' came without its descriptors: Too many open files"
    ours.close()


async def test_what_was_said_before_the_end_is_heard() -> None:
    ours, theirs = map(Channel, pair())
    heard: list[str] = []
    for _ in range(3):
        ours.say(ChannelMessage("go"))
    await ours.send_waiting()
    ours.close()
    theirs.say(
        ChannelMessage("serving")
    )  # which fails, and must not keep the rest from being heard
    await theirs.run(lambda message: heard.append(message.kind))
    assert heard == ["go"] * 3
    assert (theirs.over, theirs.why) == (True, "")
    unsent: list[int] = []
    theirs.say(ChannelMessage("go"), unsent=lambda: unsent.append(1))
    assert unsent == [1]
    theirs.close()


async def test_so_it_is_when_the_end_has_read_nothing() -> None:
    """The kernel tells that first."""
    ours, theirs = map(Channel, pair())
    theirs.say(ChannelMessage("serving"))
    await theirs.send_waiting()
    ours.say(ChannelMessage("go"))
    await ours.send_waiting()
    ours.close()
    heard: list[str] = []
    await theirs.run(lambda message: heard.append(message.kind))
    assert heard == ["go"]
    theirs.close()


async def test_who_is_not_understood_is_heard_no_more() -> None:
    end, other = pair()
    channel = Channel(end)
    readable, writable = os.pipe()
    socket.send_fds(other, [b'{"v": 1, "kind": "went"}'], [readable])
    before = open_descriptors()
    await channel.run(lambda _message: None)
    assert "a kind that is known, got 'went'" in channel.why
    assert open_descriptors() == before - 1  # what came with it is closed, and so is our end
    assert other.recv(10) == b""
    for descriptor in (readable, writable):
        os.close(descriptor)
    other.close()


async def test_who_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 100)
    end, other = pair()
    channel = Channel(end)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run, lambda _message: None)
        while not channel.over:
            channel.say(ChannelMessage("lost", {"site": {}, "why": "x" * 10_000, "ranges": []}))
    assert "wait to be read" in channel.why
    other.close()
    channel.close()


# --- The relay


async def test_bytes_go_both_ways_and_each_end_is_passed_on() -> None:
    client, ours = stream_pair()
    home, theirs = stream_pair()
    ends = [trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (client, theirs)]
    data = os.urandom(3_000_000)

    async def send(stream: trio.SocketStream, what: bytes) -> None:
        await stream.send_all(what)
        await stream.send_eof()

    async def receive(stream: trio.SocketStream, into: bytearray) -> None:
        async for part in stream:
            into += part

    there, back = bytearray(), bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, ours, home, b"early ")
        nursery.start_soon(send, ends[0], data)
        nursery.start_soon(send, ends[1], data[::-1])
        nursery.start_soon(receive, ends[1], there)
        nursery.start_soon(receive, ends[0], back)
    assert there == b"early " + data
    assert back == data[::-1]
    for each in (ours, home):
        each.close()
    for stream in ends:
        await stream.aclose()


@pytest.mark.parametrize("who", [0, 1])
async def test_when_one_side_breaks_it_is_over(who: int) -> None:
    client, ours = stream_pair()
    home, theirs = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, ours, home, b"")
        await trio.testing.wait_all_tasks_blocked()
        end: Callable[[], None] = (client, theirs)[who].close
        # Unread bytes make of the end a reset.
        (theirs, client)[who].send(b"unread")
        await trio.testing.wait_all_tasks_blocked()
        end()
        (theirs, client)[who].close()
    for each in (ours, home):
        each.close()
