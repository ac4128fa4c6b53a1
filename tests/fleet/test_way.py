"""The way of a client to the home of its disk: who is asked, how long, and what is cut when it has moved."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Collection, Container
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from weakref import ref

import pytest
import structlog
import trio
import trio.testing

from gateway.config import Upstream
from gateway.fleet import led
from gateway.fleet.door import NotTaken
from gateway.fleet.led import LAST_SECONDS, WayHome, Ways
from gateway.fleet.record import HomeRun
from gateway.handover.given import DiskSite, Given
from gateway.identity import Identity
from gateway.net.dial import DialError
from gateway.protocol.errors import Refusal
from gateway.tls.credentials import client_credentials
from gateway.upstream.backends import Backend
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server
from gateway.uri import parse_nbd_uri
from gateway.wire.constants import Rep
from tests.embedded.peers import socket_pair

SITE = DiskSite(frozenset({("tcp", "10.0.0.5", "10809")}), "d")
GIVEN = Given(0, "abc-1", ("TCP", "h", 1), Identity.at("192.0.2.1", 7), SITE, 0.0, None)
A, B, C = (HomeRun(name, "1", f"nbds://{name}:1") for name in "abc")
LONGEST = 80.0
STREAM = cast("trio.SocketStream", object())
"""What leads there: nobody looks."""


class Member:
    """A member of a fleet in which these are the home, one after the other; the last one stays."""

    settings = SimpleNamespace(name="me", lease_seconds=10)

    def __init__(self, *homes: HomeRun | Refusal | None) -> None:
        self._homes = list(homes)
        self.asked = 0
        self.but: list[set[str]] = []
        """Whom it was not to be."""

    def most_seconds(self, _site: DiskSite) -> float:
        return LONGEST

    async def home_of(self, _site: DiskSite, *, take: bool, but: Collection[str]) -> HomeRun | None:
        assert not take
        self.but.append({*but})
        self.asked += 1
        home = self._homes.pop(0) if len(self._homes) > 1 else self._homes[0]
        if isinstance(home, Refusal):
            raise home
        return home


def way_to(member: Member, took: list[Given], way_kept: Container[str] = ()) -> WayHome:
    def here(given: Given) -> trio.SocketStream:
        took.append(given)
        return STREAM

    def credentials(_address: object) -> Any:
        return client_credentials(hostname="a")

    log = structlog.wrap_logger(structlog.testing.CapturingLogger())
    kept_here = way_kept.__contains__
    return WayHome(cast("Any", member), GIVEN, SITE, credentials, here, kept_here, log)


def server() -> Server:
    return Server(Recipe("u", Upstream(), Backend(())))


@pytest.fixture
def led_by() -> list[str]:
    """What the connections are called."""
    return []


@pytest.fixture
def leads(monkeypatch: pytest.MonkeyPatch, led_by: list[str]) -> dict[str, bool]:
    """Say of each address whether it may be asked again; who is not there takes the client."""
    not_taken: dict[str, bool] = {}

    async def lead(address: object, _: object, given: Given, __: float, seconds: float) -> Any:
        led_by.append(given.way)
        assert seconds < LONGEST
        if str(address) in not_taken:
            answered = address == parse_nbd_uri(C.address)
            raise NotTaken("it does not", again=not_taken[str(address)], answered=answered)
        return STREAM

    monkeypatch.setattr(led, "lead", lead)
    return not_taken


async def test_etcd_is_asked_once_for_the_first_connection_and_for_each_that_follows(
    leads: dict[str, bool], autojump_clock: trio.testing.MockClock
) -> None:
    member = Member(A, B)
    way = way_to(member, [])
    assert await way.find()
    await way.connect()
    assert (member.asked, way.home) == (1, A)
    await way.connect()
    assert (member.asked, way.home) == (2, B)


async def test_a_home_that_is_dead_is_asked_for_until_there_is_another_one(
    leads: dict[str, bool], autojump_clock: trio.testing.MockClock
) -> None:
    leads[A.address] = True
    took: list[Given] = []
    way = way_to(Member(A, A, Refusal(Rep.ERR_SHUTDOWN, "not now"), None), took)
    assert await way.find()
    await way.connect()
    assert way.home is None
    assert took == [replace(GIVEN, session_id=way.id_here, way=took[0].way)]
    assert way.id_here != GIVEN.session_id  # it is here twice


async def test_whoever_does_not_answer_is_passed_over_in_one_search(
    leads: dict[str, bool], autojump_clock: trio.testing.MockClock
) -> None:
    """Not who has answered that another one is the home, and not for ever."""
    leads |= {A.address: True, C.address: True}
    member = Member(A, C, B)
    way = way_to(member, [])
    await way.connect()
    assert member.but == [set(), {"a"}, {"a"}]
    await way.connect()
    assert member.but[3:] == [set()]


@pytest.mark.parametrize("again", [True, False])
async def test_nobody_takes_the_client(
    again: bool, leads: dict[str, bool], autojump_clock: trio.testing.MockClock
) -> None:
    leads[A.address] = again
    began = trio.current_time()
    with pytest.raises(DialError, match="its home is a: it does not") as caught:
        await way_to(Member(A), []).connect()
    assert caught.value.down is again
    assert trio.current_time() - began == (LONGEST if again else 0)


@pytest.mark.parametrize("kept", [True, False])
async def test_a_home_that_has_gone_is_asked_once_what_it_has_kept(
    kept: bool,
    leads: dict[str, bool],
    led_by: list[str],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is asked of the connection that has ended: it may have sessions of earlier ones, and not know that
    these are over.
    """
    asked: list[tuple[str, str]] = []

    async def ask_if_kept(address: object, _credentials: object, name: str, _: float) -> bool:
        asked.append((str(address), name))
        return kept

    monkeypatch.setattr(led, "ask_if_kept", ask_if_kept)
    way = way_to(Member(A, B, A), [])
    backend = way.server(server()).recipe.backend
    await way.connect()
    peer = backend.peer_of(STREAM)
    assert not any((peer.kept(), peer.gone(), asked))
    await way.connect()
    assert asked == [(A.address, led_by[0])]
    assert led_by[0] != led_by[1]
    assert peer.kept() is peer.gone() is kept
    now = backend.peer_of(STREAM)
    assert not now.kept()  # nobody has asked it
    cut = way.server(server())
    way.leave(A, cut)
    await way.connect()
    # It was silent while it held what waits, and gave the disk away.
    assert asked == [(A.address, led_by[0]), (B.address, led_by[1])]
    assert now.kept() is kept


@pytest.mark.parametrize("kept", [True, False])
async def test_what_was_kept_here_is_known_here(
    kept: bool, leads: dict[str, bool], autojump_clock: trio.testing.MockClock
) -> None:
    known: list[str] = []
    took: list[Given] = []
    way = way_to(Member(None, A), took, known)
    backend = way.server(server()).recipe.backend
    await way.connect()
    peer = backend.peer_of(STREAM)
    known += [took[0].way] if kept else []
    await way.connect()
    assert peer.kept() is kept


def test_the_home_is_an_upstream_with_patience() -> None:
    main = server()
    home = way_to(Member(A), []).server(main)
    assert home.name == "u@home"
    assert home.recipe.at_home
    assert home.disks != main.disks
    assert home.settings.connect_seconds == LONGEST + LAST_SECONDS
    assert not home.mode.survival.through_us


class Asked(Member):
    """One by which etcd says that B is the home; `meanwhile` comes before the answer."""

    def __init__(self) -> None:
        super().__init__(A, B)
        self.meanwhile: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint

    async def holder_of(self, _site: DiskSite) -> HomeRun | None:
        await self.meanwhile()
        return B


def running(id_: str, server: Server) -> Any:
    """Have a session that waits for the answer to one command."""
    location = SimpleNamespace(server=server)
    session = SimpleNamespace(client=SimpleNamespace(id=id_))
    said = SimpleNamespace(in_flight={1: None}), SimpleNamespace(session=session)
    return Session(SimpleNamespace(location=location), *said)


@dataclass(eq=False)
class Session:
    opened: Any
    traffic: Any
    membership: Any


@pytest.mark.parametrize("meanwhile", ["nothing", "answered", "gone over", "ended"])
async def test_a_home_is_left_that_says_nothing(
    meanwhile: str,
    leads: dict[str, bool],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless it has answered while etcd was asked, or the way leads to the new one already."""
    member, left, log = Asked(), [], structlog.wrap_logger(None)
    credentials = partial(client_credentials, hostname="a")
    ways = Ways(cast("Any", member), lambda _at: credentials(), cast("Any", None), bool, log)
    home = await ways.leads(GIVEN, server())
    assert home is not None
    way = ways._ways[home]
    await way.connect()
    monkeypatch.setattr(way, "leave", lambda holder, _server: left.append(holder))
    session = running("abc-1", home)
    service = SimpleNamespace(running={session})

    async def comes() -> None:
        if meanwhile == "answered":
            session.traffic.in_flight.clear()
        elif meanwhile == "gone over":
            await way.connect()

    member.meanwhile = comes
    async with trio.open_nursery() as looking:
        looking.start_soon(ways.leave_silent, cast("Any", service))
        await trio.sleep(6)
        if meanwhile == "ended":
            is_there = ref(session)
            service.running.clear()
            del session
            gc.collect()
            assert is_there() is None
        await trio.sleep(5)
        looking.cancel_scope.cancel()
    assert left == ([B] if meanwhile == "nothing" else [])


@pytest.mark.parametrize(("holder", "cut"), [(A, False), (B, True), (None, True)])
async def test_a_home_that_is_none_any_more_is_left(
    holder: HomeRun | None, cut: bool, leads: dict[str, bool]
) -> None:
    way = way_to(Member(A), [])
    home = way.server(server())
    await way.connect()
    ours, theirs = socket_pair()
    async with ours, theirs:
        sock = ours.socket
        home.links.add(cast("Any", sock))
        way.leave(holder, home)
        if cut:
            assert await theirs.receive_some() == b""
        else:
            await theirs.send_all(b"x")
            assert await ours.receive_some() == b"x"
