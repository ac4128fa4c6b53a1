"""What was lost of disks goes along with them from one gateway of a fleet to another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.app import fleet_disks
from gateway.app.fleet_disks import DisksHere
from gateway.fleet.home import DiskHome
from gateway.fleet.record import LostOf
from gateway.hub.ends import Cause
from gateway.links.disk import NOT_REMEMBERED, Disks
from gateway.sessions.service import Service

DISK, SERVER = (DiskHome(each, name, "words", 30) for each, name in (("disk", "d"), ("all", None)))
OTHER = SimpleNamespace(disks="other", settings=SimpleNamespace(canonical_names=True))
LOST = LostOf("d", "the server has gone", ((0, 512), (1024, 2048)))


def gateway() -> tuple[DisksHere, Disks, Any]:
    disks = Disks()
    server = SimpleNamespace(disks="ours", settings=SimpleNamespace(canonical_names=True))
    here = DisksHere()
    service = SimpleNamespace(disks=disks, led_to=[server, server, OTHER], running=(), opening=())

    def disk_of(settings: object, name: str) -> str | None:
        ours = {"d": "disk", "": "all"}.get(name, "another")
        return None if settings is OTHER.settings else ours

    here.begin(cast("Service", service), disk_of)
    return here, disks, server


def session(way: str, name: str, *, at_home: bool = False) -> Any:
    settings = SimpleNamespace(canonical_names=True)
    recipe = SimpleNamespace(at_home=at_home)
    server = cast("Any", SimpleNamespace(disks="ours", settings=settings, recipe=recipe))
    return SimpleNamespace(
        opened=SimpleNamespace(location=SimpleNamespace(server=server, name=name)),
        way=way,
        disk=Disks().at(server, name),
    )


def test_who_is_led_to_the_home_keeps_no_disk_here() -> None:
    here, _disks, _server = gateway()
    service = cast("Any", here._service)
    service.running = (session("", "d", at_home=True),)
    assert not here.is_used("disk")
    assert here.why_stays("disk") == ""
    service.running += (session("led", "d"),)
    assert here.is_used("disk")
    assert here.why_stays("disk") == ""
    service.running += (session("", "d"),)
    assert here.why_stays("disk") == "1 session whose client came in here"
    here.vouch("disk")
    assert [here.has_kept(each) for each in ("led", "")] == [True, False]


@pytest.mark.parametrize(("lost", "cause"), [(True, Cause.HOME_LOST), (False, Cause.DRAIN)])
def test_sessions_end_because_the_home_is_lost_or_given_away(lost: bool, cause: Cause) -> None:
    here, _disks, _server = gateway()
    service = cast("Any", here._service)
    service.config = SimpleNamespace(drain_seconds=5.0)
    ended: list[Any] = []
    its = session("one", "d")
    its.relaying = SimpleNamespace(finish=lambda *said: ended.append(said))
    service.running = (its, session("other", "e"))
    here.end_sessions("disk", "why", lost=lost)
    assert ended == [("why", 0 if lost else 5.0, cause)]


def test_the_gateway_vouches_for_the_connections_that_are_there_and_for_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, _disks, _server = gateway()
    service = cast("Any", here._service)
    service.running = (session("one", "d"), session("other", "e"))
    here.vouch("disk")
    assert [here.has_kept(each) for each in ("one", "other")] == [True, False]
    monkeypatch.setattr(fleet_disks, "MOST_KEPT", 2)
    for each in ("two", "three"):
        service.running = (session(each, "d"),)
        here.vouch("disk")
    assert [here.has_kept(each) for each in ("one", "two", "three")] == [False, True, True]


def test_where_nothing_was_lost_nothing_is_said() -> None:
    here, disks, server = gateway()
    disks.at(server, "d")
    assert here.lost(DISK) == []


@pytest.mark.parametrize("home", [DISK, SERVER])
def test_what_was_lost_is_told_at_the_next_home(home: DiskHome) -> None:
    here, disks, server = gateway()
    for name, why, ranges in (("d", LOST.why, LOST.ranges), ("e", "of another disk", ())):
        disk = disks.at(server, name)
        disk.losses.tell_the_next(why, ranges)
        disk.is_left()
    lost = here.lost(home)
    assert LOST in lost
    assert len(lost) == (1 if home is DISK else 2)
    there, its, server_there = gateway()
    there.tell(home, lost)
    untold = its.at(server_there, "d").losses.untold()
    assert untold is not None
    assert (untold.why, tuple(untold.ranges), untold.nobody) == ((LOST.why,), LOST.ranges, True)
    assert there.lost(home) == lost  # and goes on from there


def test_what_is_only_known_of_a_server_goes_along_with_it() -> None:
    here, disks, _server = gateway()
    disks.remember("ours", b"12345678")
    assert here.lost(SERVER) == [LostOf(None, NOT_REMEMBERED)]
    assert here.lost(DISK) == []
    there, its, server_there = gateway()
    there.tell(SERVER, here.lost(SERVER))
    untold = its.at(server_there, "x").losses.untold()
    assert untold is not None
    assert untold.nobody
