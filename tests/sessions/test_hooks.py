"""Sessions whose policies have hooks: what a hook does, and what becomes of it when something ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.embedded import PERSONALITIES, Faults, MemoryDisk, Server
from gateway.embedded.faults import NONE
from gateway.policy import Cmd, Errno, Failed, Next, Policy, Request, Result, View
from gateway.scan.traffic import MAX_IN_FLIGHT
from gateway.wire.limits import KIB, MIB
from gateway.wire.transmission import SIMPLE_REPLY, encode_request
from tests.embedded.peers import Client
from tests.sessions.gateways import ENDS_WITH_ITS_LINK, Gateway, gateway_before
from tests.sessions.placed import Waiting, place

SIZE = MIB
CONTENT = bytes(range(256)) * (SIZE // 256)


async def server(faults: Faults = NONE) -> Server:
    disk = MemoryDisk(SIZE)
    await disk.write(0, CONTENT)
    return Server({"": disk}, PERSONALITIES["plain"], faults=faults)


class Broken(Policy):
    """A READ fails by a bug, or gives too little."""

    short: bool = False

    async def read(self, request: Request, next: Next) -> Result:
        if self.short:
            return b"too short"
        raise ZeroDivisionError("a bug of the policy")


class Halves(Policy):
    """Does every READ in two halves at the same time, the second from a mirror of the offset."""

    async def read(self, request: Request, next: Next) -> Result:
        middle = request.offset + request.length // 2
        found: dict[int, bytes] = {}

        async def half(start: int, end: int) -> None:
            found[start] = await next(request.part(start, end))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(half, request.offset, middle)
            nursery.start_soon(half, middle, request.end)
        return found[request.offset] + found[middle]


class Shifting(Policy):
    """Shows the second half of the disk, by hooks."""

    def describe(self, view: View) -> View:
        return replace(view, size=view.size // 2)

    async def each(self, request: Request, next: Next) -> Result:
        result: Result = await next(request.moved(SIZE // 2))
        return result


class Picky(Policy):
    """FLUSH fails; so does a WRITE of an odd length, after it has been done."""

    async def flush(self, request: Request, next: Next) -> Result:
        raise Failed(Errno.ENOSPC, "no FLUSH today")

    async def write(self, request: Request, next: Next) -> Result:
        await next(request)
        if request.length % 2:
            raise Failed(Errno.EIO, "odd", request.offset + 1)
        return None


class Astray(Policy):
    """A READ goes behind the end of the disk."""

    async def read(self, request: Request, next: Next) -> Result:
        result: Result = await next(request.moved(SIZE))
        return result


async def opened(gateway: Gateway, *, simple: bool = False) -> Client:
    client = gateway.client()
    await client.go("", structured=not simple, extended=not simple)
    return client


@pytest.mark.parametrize("structured", [False, True], ids=["simple", "structured"])
async def test_a_hook_may_ask_several_times_at_once(structured: bool) -> None:
    async with gateway_before(await server()) as gateway:
        place(gateway, Halves())
        client = await opened(gateway, simple=not structured)
        async with client.stream:
            if structured:
                assert await client.read(1000, 5000) == CONTENT[1000:6000]
            else:
                _cookie, error, data = await client.simple_reply_to(Cmd.READ, 1000, 5000)
                assert (error, data) == (0, CONTENT[1000:6000])


async def test_a_hook_may_shift_offsets_in_front_of_another() -> None:
    async with gateway_before(await server()) as gateway:
        place(gateway, Shifting(), Halves())
        client = await opened(gateway)
        async with client.stream:
            at = SIZE // 2
            assert await client.read(10, 300) == CONTENT[at + 10 : at + 310]
            assert not await client.error(Cmd.WRITE, 0, 4, data=b"here")
            assert await client.error(Cmd.READ, SIZE // 2, 1) == Errno.EINVAL
        place(gateway)
        plain = await opened(gateway)
        async with plain.stream:
            assert await plain.read(at, 4) == b"here"


async def test_flush_and_write_through_hooks() -> None:
    async with gateway_before(await server()) as gateway:
        place(gateway, Picky())
        client = await opened(gateway)
        async with client.stream:
            assert await client.error(Cmd.FLUSH) == Errno.EIO  # what a FLUSH is told of a loss
            [chunk] = await client.ask(Cmd.WRITE, 100, 3, data=b"odd")
            assert chunk.error == Errno.EIO
            assert not await client.error(Cmd.WRITE, 100, 4, data=b"even")
            assert await client.read(100, 4) == b"even"


@pytest.mark.parametrize("short", [False, True], ids=["raises", "gives too little"])
async def test_a_bug_of_a_policy_costs_one_command(short: bool) -> None:
    async with gateway_before(await server()) as gateway:
        place(gateway, Broken(short=short))
        client = await opened(gateway)
        async with client.stream:
            assert await client.error(Cmd.READ, 0, 512) == Errno.EIO
            assert not await client.error(Cmd.WRITE, 0, 512, data=bytes(512))
            assert await client.error(Cmd.READ, 0, 512) == Errno.EIO


async def test_a_policy_that_goes_astray_costs_one_command() -> None:
    async with gateway_before(await server()) as gateway:
        place(gateway, Astray())
        client = await opened(gateway)
        async with client.stream:
            # The server would have said EINVAL.
            assert await client.error(Cmd.READ, 0, 512) == Errno.EIO
            assert not await client.error(Cmd.WRITE, 0, 4, data=b"here")


async def test_block_status_through_a_hook() -> None:
    class Passing(Policy):
        async def each(self, request: Request, next: Next) -> Result:
            assert request.contexts == ("base:allocation",)
            result: Result = await next(request)
            return result

    async with gateway_before(await server()) as gateway:
        plain = gateway.client()
        await plain.go("", extended=True, contexts=("base:allocation",))
        async with plain.stream:
            expected = await plain.status(0, SIZE)
        place(gateway, Passing())
        client = gateway.client()
        await client.go("", extended=True, contexts=("base:allocation",))
        async with client.stream:
            assert await client.status(0, SIZE) == expected


async def test_no_more_than_so_many_are_under_way() -> None:
    waiting = Waiting()
    count = MAX_IN_FLIGHT + 50
    async with gateway_before(await server()) as gateway:
        place(gateway, waiting)
        client = await opened(gateway, simple=True)
        async with client.stream:
            requests = [encode_request(Cmd.READ, 0, cookie, 0, 512) for cookie in range(count)]
            await client.stream.send_all(b"".join(requests))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(waiting._under_way) == MAX_IN_FLIGHT
            waiting._let_go.set()
            cookies = set()
            for _ in range(count):
                _magic, error, cookie = SIMPLE_REPLY.unpack(await client.receive(16))
                assert not error
                cookies.add(cookie)
                assert await client.receive(512) == CONTENT[:512]
            assert cookies == set(range(count))


async def test_a_client_that_vanishes_takes_its_hooks_along() -> None:
    waiting = Waiting()
    async with gateway_before(await server()) as gateway:
        place(gateway, waiting)
        client = await opened(gateway, simple=True)
        await client.stream.send_all(encode_request(Cmd.READ, 0, 1, 0, 512) * 3)
        await trio.testing.wait_all_tasks_blocked(0.01)
        [session] = gateway.service.hub.sessions
        session.cut_off()
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(waiting._cancelled) == 3


async def test_an_upstream_that_dies_fails_what_hooks_have_under_way() -> None:
    """Once for each command, though the hook goes on, and asks in vain."""
    waiting = Waiting()
    faults = Faults(close_on_command=Cmd.FLUSH)
    async with gateway_before(await server(faults), mode=ENDS_WITH_ITS_LINK) as gateway:
        place(gateway, waiting)
        client = await opened(gateway, simple=True)
        async with client.stream:
            await client.stream.send_all(encode_request(Cmd.READ, 0, 1, 0, 512))
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.stream.send_all(encode_request(Cmd.FLUSH, 0, 2, 0, 0))
            told = {}
            for _ in range(2):
                _magic, error, cookie = SIMPLE_REPLY.unpack(await client.receive(16))
                told[cookie] = error
            assert told == {1: Errno.EIO, 2: Errno.EIO}
            waiting._let_go.set()
            assert not await client.rest()


async def test_draining_waits_for_hooks(autojump_clock: trio.testing.MockClock) -> None:
    waiting = Waiting()
    async with gateway_before(await server(), seconds=1000, drain_seconds=100) as gateway:
        place(gateway, waiting)
        client = await opened(gateway, simple=True)
        async with client.stream:
            await client.stream.send_all(encode_request(Cmd.READ, 0, 7, 0, 4 * KIB))
            await trio.testing.wait_all_tasks_blocked()
            gateway.service.drain()
            await trio.testing.wait_all_tasks_blocked()
            waiting._let_go.set()
            assert SIMPLE_REPLY.unpack(await client.receive(16))[1:] == (0, 7)
            assert await client.receive(4 * KIB) == CONTENT[: 4 * KIB]
            assert not await client.stream.receive_some()
