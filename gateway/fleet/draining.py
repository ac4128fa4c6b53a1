"""A gateway of a fleet is drained: the disks whose home it is get others, and no session is harmed by it.

Who is asked
------------

`nbd-gateway fleet drain NAME` writes a key (`drains/NAME`), and all gateways follow these keys. It would be
enough to tell the one, by its control socket or at its `address`. But the others have to know as well, or they
would lead new disks there as fast as it gives them away; they have to know it also when they are started later,
and when the one that is drained is started anew, for that is what it is drained for. So it is a fact about the
fleet, and those are in etcd. Whoever may ask is who may write there, from any machine that has a configuration.
It stays until somebody says `undrain`; whether a gateway of that name is there makes no difference.

What others know may be a moment old. So a gateway that is drained takes no disk that is led to it, and says who
should; unless all are drained, for somebody has to serve.

One disk
--------

1. Nobody opens it here any more; whoever wants to, waits (`DiskHome.moves`).
2. Its sessions begin nothing, what is under way is answered, and all is flushed (`FleetOffice.at_rest`).
3. The tenure is over. From here on no byte goes to the server, whatever happens: each link looks. (It may say
   DISC, which asks nothing of a disk.)
4. The key is removed, and the record is without this gateway, and has what clients have still to be told of.
   All that was sent was answered, so the next home waits for nothing and needs no fence.
5. Its sessions end here. Not before: whoever led them here asks at once where the home is, and would find it
   here. He also asks here whether all was kept that his client was answered (`FleetOffice.vouch`), and if that
   is so, the client is told of no loss. A request that was not begun has no answer, and is asked of the next
   home.

If something goes wrong before 3, all goes on as before, and it is tried again. After 3 there is no way back:
while etcd does not answer, the sessions wait; it answers, or the lease ends, and then the disk is as good as
given.

What stays
----------

A disk stays here as long as something of it would be harmed by the move, or until the deadline that was given:

- sessions that would not outlive it, because their clients came in here (`gateway.app.fleet_disks`). They may
  stay as long as they like; at the deadline they end in good order;
- sessions that have still to be told that something was lost. They are told at their next FLUSH;
- a link has ended with something under way, which may come late. That passes (`late-write-seconds`); where
  there is a fence nothing passes by itself, and the disk stays until the gateway ends;
- there are connections to its server, and no sessions: they are being made, or flushed and closed. That passes;
- there is nobody else to take it.

At most `at_once` disks are on the move, for each is a wait for its clients, and asks etcd six times.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from math import inf, isinf
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from gateway.config import Fleet
from gateway.fleet.answers import EtcdKey
from gateway.fleet.etcd import Etcd, EtcdPut
from gateway.fleet.following import AGAIN_SECONDS, FollowedKeys
from gateway.fleet.held import HeldLease
from gateway.fleet.home import DiskHome, NotNow
from gateway.fleet.keys import DrainAsked, FleetKeys, NotSaid, drain_said
from gateway.fleet.office import FleetOffice
from gateway.fleet.record import LostOf
from gateway.fleet.taking import NOT_ANSWERED, Taking
from gateway.log.ids import new_id

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_SECONDS = 0.5
"""How often it is looked which disks can go now, and how far it is told to be at etcd, at most."""

TRY_AGAIN_SECONDS = 5.0
"""A disk that could not be given is tried again after so long: its clients have waited, and are to get on."""

END_SECONDS = 30.0
"""How long the sessions of a disk that was given away may take to be gone: as `drain-seconds` by default."""

LOOK_IF_ENDED_SECONDS = 0.02
"""How often it is looked whether they are: who wants to open the disk here waits for it, to be led on."""

MOST_SHOWN = 20
"""Disks that stay, and are shown with the reason; others are counted. What is told at etcd has a few KiB."""

_Any = TypeVar("_Any")


class Drains:
    """Which gateways of a fleet are drained, as etcd had it a moment ago."""

    def __init__(self, etcd: Etcd, settings: Fleet) -> None:
        self._etcd = etcd
        self._keys = FleetKeys(settings.prefix)
        self._followed = FollowedKeys(etcd, self._keys.drains, self._brought)
        self._asked: dict[str, DrainAsked] = {}
        self._changed = trio.Event()
        self.run = self._followed.run

    async def _brought(self, key: EtcdKey) -> None:
        name = key.key.removeprefix(self._keys.drains)
        self._asked.pop(name, None)
        if not key.gone:
            try:
                self._asked[name] = drain_said(key.value)
            except NotSaid:  # of a later version: drained it is
                self._asked[name] = DrainAsked("", None)
        self._changed.set()
        self._changed = trio.Event()

    def of(self, name: str) -> DrainAsked | None:
        """Give what was asked of a gateway; None: it is not drained."""
        return self._asked.get(name)

    def but(self, gateways: Mapping[str, _Any]) -> dict[str, _Any]:
        """Give those of some gateways that are not drained."""
        return {name: each for name, each in gateways.items() if name not in self._asked}

    async def change(self) -> None:
        """Wait until something is otherwise."""
        await self._changed.wait()

    async def say(self, name: str, number: int, shown: Mapping[str, Any] | None) -> None:
        """Say at etcd how far it is with a gateway, as long as its lease (`number`) lives; None: it is over.
        Raises what etcd raises.
        """
        key = f"{self._keys.moves}{name}"
        if shown is None:
            await self._etcd.change([], [], [key])
        elif number:
            asked = self.of(name)
            said = {"number": asked.number if asked else "", **shown}
            await self._etcd.change([], [EtcdPut(key, json.dumps(said), number)])


class GivingWay:
    """Gives away the disks of this gateway, while that is asked for. `homes` gives those that are here,
    `others` says how many gateways would take them.
    """

    def __init__(
        self,
        drains: Drains,
        held: HeldLease,
        taking: Taking,
        office: FleetOffice,
        homes: Callable[[], list[DiskHome]],
        others: Callable[[], Awaitable[int]],
        log: FilteringBoundLogger,
        at_once: int,
    ) -> None:
        self._drains = drains
        self._held = held
        self._taking = taking
        self._office = office
        self._homes, self._others = homes, others
        self._log = log
        self._at_once = at_once
        self._asked: DrainAsked | None = None
        self._deadline = inf
        self._moved = 0
        self._moving: dict[DiskHome, str] = {}
        self._stays: dict[str, str] = {}
        """Why, by what people call each."""
        self._again_at: dict[str, tuple[float, str]] = {}
        """When to try a disk again, and why it could not be given."""
        self._said: dict[str, Any] | None = None

    def shown(self) -> dict[str, Any] | None:
        """Show how far it is (docs/fleet.md has the names); None: nobody has asked."""
        if self._asked is None:
            return None
        left = None if isinf(self._deadline) else self._deadline - trio.current_time()
        return {
            "left": len(self._homes()),
            "moved": self._moved,
            "moving": [{"disk": home.words, "what": what} for home, what in self._moving.items()],
            "stays": [
                {"disk": words, "why": why} for words, why in [*self._stays.items()][:MOST_SHOWN]
            ],
            "more": max(0, len(self._stays) - MOST_SHOWN),
            "sessions_end_in_seconds": None if left is None else max(0, round(left)),
        }

    async def run(self) -> None:
        """Do what is asked, until cancelled."""
        name = self._held.me.gateway
        async with trio.open_nursery() as nursery:
            while True:
                self._heed(self._drains.of(name))
                if self._asked is not None:
                    await self._begin_some(nursery)
                await self._say(name)
                idle = self._said is None and self._drains.of(name) is None
                with trio.move_on_after(inf if idle else LOOK_SECONDS):
                    await self._drains.change()

    def _heed(self, asked: DrainAsked | None) -> None:
        if asked == self._asked:
            return
        if asked is None:
            self._log.info("drained no more", homes=len(self._homes()))
        else:
            seconds = inf if asked.seconds is None else asked.seconds
            self._deadline = trio.current_time() + seconds
            homes = len(self._homes())
            self._log.info("drained", homes=homes, sessions_end_in_seconds=asked.seconds)
        self._asked = asked
        self._moved = 0
        self._stays, self._again_at = {}, {}

    async def _begin_some(self, nursery: trio.Nursery) -> None:
        """Begin to give away what can be, as long as there is room, and note why the rest stays."""
        homes = [home for home in self._homes() if home not in self._moving]
        try:
            nobody = "" if not homes or await self._others() else "no other gateway takes disks"
        except NOT_ANSWERED as error:
            nobody = f"etcd does not answer: {error}"
        stays: dict[str, str] = {}
        for home in homes:
            why = nobody or self._why_stays(home)
            if why:
                stays[home.words] = why
            elif len(self._moving) < self._at_once:
                self._moving[home] = "waits for what is under way"
                nursery.start_soon(self._give, home)
        self._stays = stays

    def _why_stays(self, home: DiskHome) -> str:
        at, why = self._again_at.get(home.disk, (-inf, ""))
        now = trio.current_time()
        if now < at:
            return why
        self._again_at.pop(home.disk, None)
        if not home.serves(self._held):
            return "it is not served yet"
        if isinf(home.unwell_for):
            return (
                "a connection has ended with something under way: it stays until the gateway ends"
            )
        if home.unwell_for:
            return f"what a connection had under way may come for {home.unwell_for:.0f} s more"
        if home.has_links and not self._office.is_used(home.disk):
            return "a connection to its server is being made or closed"
        return self._office.why_stays(home.disk) if now < self._deadline else ""

    async def _give(self, home: DiskHome) -> None:
        """Give one disk away, if it can be."""
        home.moves = True
        try:
            async with self._office.at_rest(home.disk):
                if home.unwell_for or not home.may(self._held):
                    raise NotNow("a connection to its server was lost meanwhile")
                lost = self._office.lost(home)
                home.become(home.tenure.ended())
                self._moving[home] = "is given away"
                await self._given(home, lost)
                if not lost:
                    self._office.vouch(home.disk)
                await self._end_sessions(home)
        except NotNow as error:
            self._again_at[home.disk] = trio.current_time() + TRY_AGAIN_SECONDS, str(error)
            self._log.warning("disk is not given away", disk=home.words, why=str(error))
        else:
            self._moved += 1
            self._log.info("disk is given away", disk=home.words)
        finally:
            home.moves = False
            home.note_change()
            self._moving.pop(home, None)

    async def _given(self, home: DiskHome, lost: Collection[LostOf]) -> None:
        me = self._held.me
        while self._held.number and self._held.me == me:
            try:
                await self._taking.give(home, lost)
                return
            except NOT_ANSWERED:
                await trio.sleep(AGAIN_SECONDS)

    async def _end_sessions(self, home: DiskHome) -> None:
        """End them, also those that only begin now: they were opened before anybody had to wait."""
        with trio.move_on_after(END_SECONDS):
            while self._office.is_used(home.disk):
                why = "the disk has its home at another gateway from now on"
                self._office.end_sessions(home.disk, why, lost=False)
                await trio.sleep(LOOK_IF_ENDED_SECONDS)

    async def _say(self, name: str) -> None:
        """Say at etcd how far it is, if that is something else than before."""
        shown = self.shown()
        if shown != self._said:
            try:
                await self._drains.say(name, self._held.number, shown)
                self._said = shown
            except NOT_ANSWERED:
                pass  # in a moment again


# --- Who asks


async def ask_to_drain(etcd: Etcd, settings: Fleet, name: str, seconds: float | None) -> str:
    """Have a gateway be drained; give which drain it is. Raises `NotNow` if there is none of that name, and
    what etcd raises.
    """
    keys = FleetKeys(settings.prefix)
    while True:
        member = await etcd.get(keys.member(name))
        if not member.revision:
            raise NotNow(f"there is no gateway {name} in the fleet now")
        there = await etcd.get(f"{keys.drains}{name}")
        asked = DrainAsked(new_id(), seconds)
        if await etcd.change([there], [EtcdPut(there.key, asked.encode())]):
            return asked.number


async def ask_to_undrain(etcd: Etcd, settings: Fleet, name: str) -> bool:
    """Have a gateway have disks again, whether it is there or not; say whether it was drained. Raises what etcd
    raises.
    """
    key = f"{FleetKeys(settings.prefix).drains}{name}"
    while True:
        there = await etcd.get(key)
        if not there.revision:
            return False
        if await etcd.change([there], [], [key]):
            return True


async def how_far(etcd: Etcd, settings: Fleet, name: str, number: str) -> dict[str, Any] | None:
    """Give what a gateway says of a drain (`GivingWay.shown`); None: nothing yet. Raises `NotNow` if it has
    gone, and what etcd raises.
    """
    keys = FleetKeys(settings.prefix)
    said = shown_of((await etcd.get(f"{keys.moves}{name}")).value)
    if said.get("number") == number:
        return said
    if not (await etcd.get(keys.member(name))).revision:
        raise NotNow(f"gateway {name} has gone")
    return None


def shown_of(text: str) -> dict[str, Any]:
    """Read what a gateway has said at etcd of how far it is; empty, if it is not that."""
    try:
        said = json.loads(text)
        counts = [said.get(each, 0) for each in ("left", "moved", "more")]
        seconds = said.get("sessions_end_in_seconds")
        parts = [(each["disk"], each["what"]) for each in said.get("moving", ())]
        parts += [(each["disk"], each["why"]) for each in said.get("stays", ())]
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return {}
    numbers = all(isinstance(each, int) for each in (*counts, seconds or 0))
    return said if numbers and all(isinstance(e, str) for part in parts for e in part) else {}
