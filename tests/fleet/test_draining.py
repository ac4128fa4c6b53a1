"""A gateway is drained: what becomes of its disks, in which order, and what stays."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from gateway.fleet.draining import how_far, shown_of
from gateway.fleet.home import NotNow
from gateway.fleet.keys import FleetKeys
from gateway.fleet.member import AT_ONCE
from gateway.fleet.record import (
    MOST_LOST_DISKS,
    MOST_LOST_RANGES,
    DiskRecord,
    HomeRun,
    LostOf,
    record_of,
)
from tests.fleet.etcds import Members, running
from tests.fleet.joined import LOOK_AGAIN_SECONDS, Alone, joined, site
from tests.fleet.running import answers

ME = HomeRun("a", "1")
LOST = LostOf("d", "the server has gone", ((0, 512), (1024, 2048)))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with running(tmp_path_factory.mktemp("etcd")) as members:
        trio.run(answers, members)
        yield members


async def test_what_is_lost_stands_in_the_record_until_the_disk_is_taken() -> None:
    given = DiskRecord((ME,)).given(ME, [LOST])
    assert record_of(given.encode()) == DiskRecord((), (LOST,))
    assert record_of(given.taken(ME).encode()) == DiskRecord((ME,))


async def test_what_a_record_has_no_room_for_is_told_as_more() -> None:
    many = LostOf("d", "why", tuple((2 * n, 2 * n + 1) for n in range(MOST_LOST_RANGES + 1)))
    [lost] = DiskRecord().given(ME, [many]).lost
    assert lost == LostOf("d", "why", ((0, 2 * MOST_LOST_RANGES + 1),))
    disks = [LostOf(f"d{n}", "why") for n in range(MOST_LOST_DISKS + 1)]
    assert DiskRecord().given(ME, disks).lost == (LostOf(None, "why"),)


@pytest.mark.real
class TestBesideEtcd:
    async def test_sessions_end_when_the_next_home_may_begin(self, one: Members) -> None:
        """And it begins at once: nobody waits for late-write-seconds, which are a day."""
        async with joined(one, "a") as a, joined(one, "b") as b:
            assert await a.serves("d")
            home = a.member.homes()[0]
            a.office.sessions.add(home.disk)
            may: list[bool] = []
            a.office.at_the_end = lambda: may.append(home.may(a.member.held))
            number = await a.drain()
            await a.has(0)
            assert a.office.events == ["at rest", "key removed", "vouched for", "sessions end"]
            assert may == [False]
            assert await b.serves("d")
            far = None
            while far is None or far["left"] or far["moving"]:
                await trio.sleep(LOOK_AGAIN_SECONDS)
                far = await how_far(a.etcd, a.member.settings, "a", number)
            assert far["moved"] == 1
            assert await a.undrain()
            assert not await a.undrain()

    async def test_it_takes_no_disk_while_it_is_drained(self, one: Members) -> None:
        async with joined(one, "a") as a, joined(one, "b") as b:
            await a.drain()
            await a.is_drained()
            for number in range(4):  # one of them would be its own
                home = await a.member.home_of(site(a.config, f"n{number}"), take=True)
                assert home is not None
                assert home.gateway == "b"
            await b.drain()
            await b.is_drained()
            while not a.member.draining._drains.of("b"):
                await trio.sleep(LOOK_AGAIN_SECONDS)
            assert await a.serves("n9") or await b.serves("n9")  # somebody has to
            assert await a.undrain()
            assert await b.undrain()

    async def test_what_was_lost_goes_along(self, one: Members) -> None:
        async with joined(one, "a") as a, joined(one, "b") as b:
            assert await a.serves("l")
            a.office.losses = [LOST]
            await a.drain()
            await a.has(0)
            assert await b.serves("l")
            assert b.office.told == [LOST]
            assert "vouched for" not in a.office.events
            assert await a.undrain()

    async def test_what_would_be_harmed_stays_until_the_deadline(self, one: Members) -> None:
        async with joined(one, "a") as a, joined(one, "b"):
            assert await a.serves("s")
            disk = a.member.homes()[0].disk
            a.office.stays[disk] = "2 sessions whose clients came in here"
            await a.drain()
            while not (shown := a.member.draining.shown()) or not shown["stays"]:
                await trio.sleep(LOOK_AGAIN_SECONDS)
            assert shown["stays"] == [
                {"disk": "tcp 192.0.2.1 10809 s", "why": a.office.stays[disk]}
            ]
            assert a.office.events == []
            await a.drain(0)
            await a.has(0)
            assert await a.undrain()

    async def test_what_is_being_closed_is_waited_for(self, one: Members) -> None:
        """It may be flushing."""
        ours, servers = socket.socketpair()
        async with joined(one, "a") as a, joined(one, "b"):
            assert await a.serves("c")
            [home] = a.member.homes()
            link = home.guard(a.member.held)(ours)
            await a.drain(0)
            while not (shown := a.member.draining.shown()) or not shown["stays"]:
                await trio.sleep(LOOK_AGAIN_SECONDS)
            assert shown["stays"][0]["why"] == "a connection to its server is being made or closed"
            link.close()
            await a.has(0)
            assert await a.undrain()
        servers.close()

    async def test_a_link_that_ended_badly_keeps_it_as_long_as_something_may_come(
        self, one: Members
    ) -> None:
        ours, servers = socket.socketpair()
        async with joined(one, "a") as a, joined(one, "b"):
            assert await a.serves("u")
            [home] = a.member.homes()
            link = home.guard(a.member.held)(ours)
            link.send(b"a part of a request")
            link.close()
            await a.drain(0)
            while not (shown := a.member.draining.shown()) or not shown["stays"]:
                await trio.sleep(LOOK_AGAIN_SECONDS)
            assert "may come for 86400 s more" in shown["stays"][0]["why"]
            home.late = 0
            home._unwell_until = 0  # as when the day has passed
            await a.has(0)
            assert await a.undrain()
        servers.close()

    async def test_where_nobody_else_is_all_stays(self, one: Members) -> None:
        async with joined(one, "a") as a:
            assert await a.serves("o")
            await a.drain(0)
            while not (shown := a.member.draining.shown()) or not shown["stays"]:
                await trio.sleep(LOOK_AGAIN_SECONDS)
            assert shown["stays"][0]["why"] == "no other gateway takes disks"
            assert await a.undrain()
            while a.member.draining.shown() is not None:
                await trio.sleep(LOOK_AGAIN_SECONDS)
            assert a.office.events == []

    async def test_few_are_on_the_move_at_once(self, one: Members) -> None:
        async with joined(one, "a") as a, joined(one, "b"):
            for number in range(3 * AT_ONCE):
                assert await a.serves(f"m{number}")
            a.office.may_rest = trio.Event()
            await a.drain()
            while a.office.resting < AT_ONCE:
                await trio.sleep(LOOK_AGAIN_SECONDS)
            a.office.may_rest.set()
            await a.has(0)
            assert a.office.most_resting == AT_ONCE
            assert await a.undrain()

    async def test_what_does_not_come_to_rest_goes_on_and_is_tried_again(
        self, one: Members, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.fleet.draining.TRY_AGAIN_SECONDS", 0)
        async with joined(one, "a") as a, joined(one, "b"):
            assert await a.serves("r")
            a.office.refuses = 2
            await a.drain()
            await a.has(0)
            assert a.office.events == ["at rest", "key removed", "vouched for"]
            assert await a.undrain()

    async def test_an_answer_that_is_lost_is_asked_for_again(self, one: Members) -> None:
        async with joined(one, "a") as a, joined(one, "b") as b:
            assert await a.serves("x")
            a.office.sessions.add(a.member.homes()[0].disk)
            a.etcd.loses = 1
            await a.drain()
            await a.has(0)
            assert a.office.events == ["at rest", "key removed", "vouched for", "sessions end"]
            assert await b.serves("x")
            assert await a.undrain()

    async def test_whoever_asks_meanwhile_waits_and_is_led_on(self, one: Members) -> None:
        async with joined(one, "a") as a, joined(one, "b"):
            assert await a.serves("w")
            a.office.may_rest = trio.Event()
            await a.drain()
            while not a.office.resting:
                await trio.sleep(LOOK_AGAIN_SECONDS)
            found: list[str] = []

            async def ask() -> None:
                home = await a.member.home_of(site(a.config, "w"), take=False)
                found.append("here" if home is None else home.gateway)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not found
                a.office.may_rest.set()
            assert found == ["b"]
            assert await a.undrain()

    async def test_nobody_is_drained_who_is_not_there(self, one: Members) -> None:
        async with joined(one, "a") as a:
            settings = a.member.settings.model_copy(update={"name": "nobody"})
            keys = FleetKeys(settings.prefix)
            lonely = Alone(a.config, a.etcd, a.office, a.member)
            lonely.member.settings = settings
            with pytest.raises(NotNow, match="there is no gateway nobody"):
                await lonely.drain()
            assert (await a.etcd.get(f"{keys.drains}nobody")).revision == 0


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "[]",
        '{"left": null}',
        '{"left": "one"}',
        '{"moving": 3}',
        '{"moving": [{"disk": 1, "what": "x"}]}',
        '{"stays": [1]}',
        '{"stays": [{"disk": "d"}]}',
        '{"sessions_end_in_seconds": "soon"}',
    ],
)
def test_how_far_a_gateway_is_has_to_be_said_as_a_gateway_says_it(text: str) -> None:
    assert shown_of(text) == {}


def test_how_far_a_gateway_is_is_read_as_it_was_said() -> None:
    said = {
        "number": "1",
        "left": 1,
        "moved": 2,
        "moving": [{"disk": "d", "what": "is given away"}],
        "stays": [{"disk": "e", "why": "of a session"}],
        "more": 0,
        "sessions_end_in_seconds": None,
    }
    assert shown_of(json.dumps(said)) == said
