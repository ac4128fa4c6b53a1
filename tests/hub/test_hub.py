"""What the hub does beside its sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.clients.client import serve_client
from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Request, Server
from gateway.hub import rounds
from gateway.hub.crowd import CALM_STEPS
from gateway.hub.ending import do_all
from gateway.hub.hold_ups import LOOK_FOR_HOLD_UPS_SECONDS
from gateway.hub.hub import Hub
from gateway.hub.pace import Pace
from gateway.hub.session import Session
from gateway.jobs.locks import RangeLocks
from gateway.links.trunk import Trunk
from gateway.scan import chunks, replies, requests, turn
from gateway.wire.constants import BASE_ALLOCATION, Cmd
from gateway.wire.handshake import BlockSizes
from gateway.wire.transmission import encode_request, is_error
from tests.embedded.peers import Client, socket_pair
from tests.sessions.gateways import Gateway, gateway_before


async def test_our_bugs_beside_the_sessions_are_said_and_end_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hub = Hub()
    said: list[BaseException] = []
    hub.failed = said.append
    done: list[str] = []
    bug = ZeroDivisionError("a bug")

    def fail() -> None:
        raise bug

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.sleep(1)
        hub.soon(fail)
        hub.later(1, lambda: done.append("later"))
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    hub.later(0, lambda: done.append("after its end"))
    hub.close()
    assert (said, done) == ([bug], ["later"])


async def test_what_goes_on_beside_the_sessions_is_begun_anew_after_a_bug(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hub = Hub()
    said: list[BaseException] = []
    hub.failed = said.append
    bugs = [UnicodeError("a bug"), SystemExit(1)]
    left = [*bugs]

    async def task() -> None:
        if left:
            raise left.pop(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.sleep(1)
        await hub.keep_up(task)
        assert said == bugs
        left[:] = bugs
        hub.start_soon(task)
        await trio.sleep(60)
        assert said == [*bugs, bugs[0]]  # what is done once is not done again
        nursery.cancel_scope.cancel()
    hub.close()


async def test_a_bug_that_nobody_is_told_of_ends_the_hub() -> None:
    hub = Hub()

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            await trio.testing.wait_all_tasks_blocked()
            hub.soon(fail)
    hub.close()


async def test_nobody_who_asks_for_little_waits_while_others_are_to_gather(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub puts off its looks where somebody has many commands under way, unless there is such a one."""
    given: list[bool] = []
    monkeypatch.setattr(Pace, "gather", lambda _pace, _seconds: given.append(True))
    monkeypatch.setattr(rounds, "CALM_SECONDS", 3600.0)
    hang = trio.Event()

    def delay(request: Request) -> trio.Event | None:
        return hang if request.offset else None

    server = Server({"": MemoryDisk(1 << 20)}, faults=Faults(delay=delay))
    async with gateway_before(server) as gateway:
        crowd, calm = gateway.client(), gateway.client()
        async with crowd.stream, calm.stream:
            await crowd.go(structured=False)
            await calm.go(structured=False)
            for _ in range(32):
                await crowd.send(Cmd.READ, 512, 512)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert given
            for _ in range(CALM_STEPS):
                await calm.simple_reply_to(Cmd.READ, 0, 512)
            given.clear()
            await crowd.send(Cmd.READ, 512, 512)
            await calm.simple_reply_to(Cmd.READ, 0, 512)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not given
            hang.set()


@pytest.mark.parametrize("mode", ['"per-client"', '"shared"', "4", '"shared:4"'])
async def test_all_is_answered_however_short_a_turn_is(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients send all at once, to a server that answers all at once."""
    monkeypatch.setattr(turn, "TURN_SECONDS", 0.0)
    for module in (replies, chunks, requests):
        monkeypatch.setattr(module, "FEW", 0)
    hang = trio.Event()
    server = Server({"": MemoryDisk(1 << 20)}, faults=Faults(delay=lambda _request: hang))

    async def asks(client: Client) -> None:
        asked = [
            await client.send(command, 4096 * number, 4096)
            for number in range(16)
            for command in (Cmd.READ, Cmd.BLOCK_STATUS, Cmd.TRIM)
        ]
        await trio.testing.wait_all_tasks_blocked(0.01)
        hang.set()
        left = set(asked)
        while left:
            cookie, chunk = await client.chunk()
            assert not is_error(chunk.kind)
            if chunk.done:
                left.remove(cookie)

    async with gateway_before(server, upstream=f"connections = {mode}") as gateway:
        one, other = gateway.client(), gateway.client()
        async with one.stream, other.stream, trio.open_nursery() as nursery:
            for client in (one, other):
                await client.go(extended=True, contexts=[BASE_ALLOCATION])
            nursery.start_soon(asks, one)
            nursery.start_soon(asks, other)


async def _shared_trunk(gateway: Gateway, name: str) -> tuple[Client, Trunk]:
    client = gateway.client()
    await client.go(name, structured=False)
    await trio.testing.wait_all_tasks_blocked()
    [trunk] = [
        each.opened.uplink.trunk
        for each in gateway.service.running
        if each.name == name and each.opened.uplink.trunk
    ]
    return client, trunk


@pytest.mark.parametrize("where", ["push", "tick", "heard"])
async def test_a_bug_in_what_sessions_share_ends_those_alone(
    where: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Wherever it is met: when something is asked, when time passes, when bytes come."""
    disks = {name: MemoryDisk(1 << 20) for name in ("broken", "sound")}
    server = Server(disks, PERSONALITIES["plain"])
    async with gateway_before(server, upstream='connections = "shared"', seconds=300) as gateway:
        said: list[BaseException] = []
        gateway.service.hub.failed = said.append
        broken, trunk = await _shared_trunk(gateway, "broken")
        sound, _trunk = await _shared_trunk(gateway, "sound")

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        setattr(trunk.bundle, where, fail)
        if where == "tick":
            trunk.bundle._note_news()
        else:
            await broken.send(Cmd.READ, 0, 512)
        await trunk.closed.wait()
        assert any(isinstance(each, ZeroDivisionError) for each in leaves(said))
        assert len(said) < 5
        with trio.move_on_after(100):
            while len(gateway.service.running) > 1:
                await trio.sleep(1)
        assert (await sound.simple_reply_to(Cmd.READ, 0, 512))[1] == 0
        for client in (broken, sound):
            await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize("where", ["say_farewell", "left", "leave", "end", "wires", "restored"])
async def test_a_bug_at_the_end_of_what_sessions_share_ends_no_more(
    where: str, autojump_clock: trio.testing.MockClock
) -> None:
    """And leaves nothing: no task, no debt, no socket; whoever waits for its end goes on."""
    disks = {name: MemoryDisk(1 << 20) for name in ("broken", "sound")}
    server = Server(disks, PERSONALITIES["plain"])
    async with gateway_before(server, upstream='connections = "shared"', seconds=300) as gateway:
        said: list[BaseException] = []
        gateway.service.hub.failed = said.append
        broken, trunk = await _shared_trunk(gateway, "broken")
        sound, _trunk = await _shared_trunk(gateway, "sound")
        await broken.send(Cmd.WRITE, 0, data=bytes(512))
        assert (await broken.simple_reply())[1] == 0

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        if where == "wires":
            trunk._wires.close = fail  # type: ignore[method-assign]
        elif where == "restored":
            trunk.restored = fail  # type: ignore[method-assign,assignment]
        else:
            setattr(trunk.bundle, where, fail)
        losses = trunk.disk.losses
        await trio.aclose_forcefully(broken.stream)
        with trio.fail_after(100):
            await trunk.closed.wait()
            while len(gateway.service.running) > 1:
                await trio.sleep(1)
        assert trunk.over.is_set()
        assert losses.sessions == 0
        assert gateway.service.relayed == 1
        assert any(isinstance(each, ZeroDivisionError) for each in leaves(said))
        assert (await sound.simple_reply_to(Cmd.READ, 0, 512))[1] == 0
        again = gateway.client()
        await again.go("broken", structured=False)
        assert (await again.simple_reply_to(Cmd.READ, 512, 512))[1] == 0
        for client in (sound, again):
            await trio.aclose_forcefully(client.stream)


class Sessions:
    """A gateway before a disk of whole blocks, with two clients: a session of one is to break."""

    def __init__(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gateway, self.hub = gateway, gateway.service.hub
        self._monkeypatch = monkeypatch
        self.ended = trio.Event()
        self.bugs: list[BaseException] = []
        """What came out of the broken one's task, or was told beside the sessions."""
        self.hub.failed = self.bugs.append

    async def sound(self) -> Client:
        client = self.gateway.client()
        await client.go("", structured=False)
        return client

    async def broken(self) -> tuple[Client, Session]:
        ours, theirs = socket_pair()
        there = set(self.hub.sessions)

        async def serve() -> None:
            try:
                service = self.gateway.service
                await serve_client(service, service.config.listen[0], theirs)
            except Exception as error:
                self.bugs.append(error)
            self.ended.set()

        self.gateway.nursery.start_soon(serve)
        client = Client(ours)
        await client.go("", structured=False)
        await trio.testing.wait_all_tasks_blocked()
        [session] = self.hub.sessions - there
        return client, session

    def break_(self, whose: object, name: str) -> None:
        """Have a bug in a method of this one object."""
        kind = type(whose)
        sound = getattr(kind, name)

        def broken(self: object, *arguments: object, **named: object) -> object:
            if self is whose:
                raise ZeroDivisionError(f"a bug in {name}")
            return sound(self, *arguments, **named)

        self._monkeypatch.setattr(kind, name, broken)

    async def hold_up(self, broken: Client, sound: Client) -> int:
        """Have one wait for the other's half WRITE to the same block; give the cookie."""
        await broken.stream.send_all(encode_request(Cmd.WRITE, 0, 1, 0, 4096) + bytes(100))
        await trio.testing.wait_all_tasks_blocked(0.01)
        cookie = await sound.send(Cmd.WRITE, 8, data=bytes(8))
        await trio.testing.wait_all_tasks_blocked(0.01)
        return cookie


@asynccontextmanager
async def sessions(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sessions]:
    blocks = replace(PERSONALITIES["plain"], block_sizes=BlockSizes(4096, 4096, 1 << 20))
    server = Server({"": MemoryDisk(1 << 20)}, blocks)
    late = "late-write-seconds = 0"
    async with gateway_before(server, upstream=late, seconds=1000) as gateway:
        yield Sessions(gateway, monkeypatch)


CLOSES: dict[str, Callable[[Session], tuple[object, str]]] = {
    "what was answered": lambda session: (session, "_note_answered"),
    "a lane": lambda session: (session._requests_lane, "close"),
    "a pin": lambda session: (session._requests, "forget_pin"),
    "what others are asked": lambda session: (session.traffic.asks, "drop"),
    "jobs": lambda session: (session.traffic.jobs, "fail"),
    "how it ends": lambda session: (session, "_happens"),
    "a socket": lambda session: (session, "_want"),
}


@pytest.mark.parametrize("why", ["in a step", "the client leaves"])
@pytest.mark.parametrize("what", CLOSES)
async def test_a_bug_at_the_end_of_a_session_ends_no_other(
    what: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing in the hub."""
    async with sessions(monkeypatch) as some:
        sound = await some.sound()
        there = set(some.hub.sessions), set(some.hub._watched)
        broken, session = await some.broken()
        some.break_(*CLOSES[what](session))
        if why == "in a step":
            some.break_(session, "_client_ready")
            await broken.send(Cmd.READ, 0, 512)
        await trio.aclose_forcefully(broken.stream)
        await some.ended.wait()
        assert any(isinstance(each, ZeroDivisionError) for each in leaves(some.bugs))
        assert (set(some.hub.sessions), set(some.hub._watched)) == there
        assert (await sound.simple_reply_to(Cmd.READ, 0, 4096))[1] == 0
        await trio.aclose_forcefully(sound.stream)


@pytest.mark.parametrize("what", ["what was answered", "a pin", "how it ends"])
async def test_who_waited_for_a_session_goes_on_whatever_broke_at_its_end(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sessions(monkeypatch) as some:
        sound = await some.sound()
        broken, session = await some.broken()
        cookie = await some.hold_up(broken, sound)
        some.break_(*CLOSES[what](session))
        some.break_(session, "_client_ready")
        await broken.stream.send_all(b"more")
        assert await sound.simple_reply() == (cookie, 0, b"")
        for client in (broken, sound):
            await trio.aclose_forcefully(client.stream)
        await some.ended.wait()


async def test_one_who_holds_up_others_is_cut_off_in_spite_of_a_bug(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with sessions(monkeypatch) as some:
        sound = await some.sound()
        broken, session = await some.broken()
        cookie = await some.hold_up(broken, sound)
        some.break_(session, "_lose_client")
        assert await sound.simple_reply() == (cookie, 0, b"")
        await some.ended.wait()
        assert any(isinstance(each, ZeroDivisionError) for each in leaves(some.bugs))
        for client in (broken, sound):
            await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize("what", ["held_up", "waits_for_kin"])
async def test_a_bug_while_we_look_who_holds_up_others_ends_nobody(
    what: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def fail(_self: object) -> None:
        raise ZeroDivisionError("a bug")

    async with sessions(monkeypatch) as some:
        sound = await some.sound()
        if what == "held_up":
            monkeypatch.setattr(Session, what, property(fail))
        else:
            monkeypatch.setattr(RangeLocks, what, fail)
        await trio.sleep(3 * LOOK_FOR_HOLD_UPS_SECONDS)
        assert len(some.bugs) > 1
        assert (await sound.simple_reply_to(Cmd.READ, 0, 4096))[1] == 0
        await trio.aclose_forcefully(sound.stream)


async def test_a_bug_in_one_thing_to_be_done_at_the_end_leaves_none_of_the_others_undone() -> None:
    done: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        do_all(lambda: done.append("first"), fail, lambda: done.append("last"))
    assert done == ["first", "last"]


def leaves(errors: Sequence[BaseException]) -> Iterator[BaseException]:
    for error in errors:
        if isinstance(error, ExceptionGroup):
            yield from leaves(error.exceptions)
        else:
            yield error
