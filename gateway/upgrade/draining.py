"""What the older process does for its clients, and for those of the newer one, while it drains.

It looks around now and then (`look`): who has come and gone is told to the newer process, disks whose last user
has gone are given, and when its time is over, sessions end.

It knows which disks were given, so it says of each client here whether that is served here (`Homes`), and of
each that the newer process gives it, whose that is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

import trio

from gateway.handover.channel import Channel
from gateway.handover.given import DiskSite, Given, identity_as_said
from gateway.handover.homes import door_of
from gateway.handover.message import ChannelMessage, NotUnderstood
from gateway.hub.ends import Cause
from gateway.protocol.server_role import ServerNegotiation
from gateway.sessions.holding import NotDone, NotHere
from gateway.sessions.opened import Location
from gateway.sessions.service import Paused, Relayed
from gateway.sessions.whereabouts import Led
from gateway.upgrade.asking import OnTheWay, take
from gateway.upgrade.giving import Gifts
from gateway.upgrade.homes import Giving, Whose
from gateway.upgrade.office import UpgradeOffice, listener_at
from gateway.wire.handshake import shown

SWITCH = "a switch"
"""By which a disk is known to `Giving` that an export is about to be led to; one is switched at a time."""

UPGRADED = "the gateway was upgraded, and the time of the process before is over: connect again"


class Draining:
    """The clients and disks of the older process, from when it accepts nobody any more."""

    def __init__(self, office: UpgradeOffice, channel: Channel) -> None:
        self.gifts = Gifts(office.service, channel.say)
        self.asking = OnTheWay()
        self.ending = False
        """Its time is over: sessions end, and no client of the newer process is taken."""
        self._office = office
        self._channel = channel
        self._giving = Giving()
        self._later: list[tuple[Given, int]] = []
        """Clients of the newer process whose disk is about to be given."""
        self._told: dict[str, bool] = {}
        """Who was told of, and whether it has opened an export."""
        self._finished: set[Relayed] = set()
        self._talking: dict[ServerNegotiation, str] = {}
        """Negotiations that were under way at the change, with what each is known by to `Giving`."""
        self._numbers = count(1)
        self._sessions_elsewhere: set[str] = set()
        """Exports of which the newer process has sessions, as far as an operator's command has to know."""

    def begin(self) -> None:
        """From now on clients here, too, may ask for disks that are not here."""
        service = self._office.service
        service.homes = self
        for core in service.negotiations:
            self._have_stay(core)
        self.tell_changes()

    def take_back(self) -> None:
        """The newer process has died: all is ours."""
        self._giving.take_back()
        self.gifts.take_back()
        service = self._office.service
        service.homes = None
        for export, paused in service.paused.items():
            if paused.elsewhere:  # who comes waits here again
                service.paused[export] = Paused(paused.by, paused.since)
        self.asking.all_stay()
        for _given, descriptor in self._later:
            os.close(descriptor)
        self._later.clear()

    def look(self) -> bool:
        """Look around; say whether nothing is left here."""
        office, service = self._office, self._office.service
        self.tell_changes()
        if self.ending:
            for paused in service.paused.values():
                paused.set(elsewhere=True)
            # Who has not opened an export yet may: then its session ends like this, and it is not refused.
            for running in service.running - self._finished:
                running.relaying.finish(UPGRADED, service.config.drain_seconds, Cause.UPGRADED)
                self._finished.add(running)
            self._finished &= service.running
        for core in self._talking.keys() - service.negotiations:
            self._giving.stays(self._talking.pop(core), None)
        later, self._later = self._later, []
        for client, descriptor in later:
            self._judge(client, descriptor)
        busy = any(disk.busy for disk in service.disks.there())
        control = office.doors.control
        answering = control is not None and control.answering
        return not (office.clients or busy or answering or self._later or self.asking)

    def tell_changes(self) -> None:
        """Tell the newer process who has come, has opened an export, and has left."""
        opened = {each.membership.session.client.id: each for each in self._office.service.running}
        there = self._office.clients
        for id_ in self._told.keys() - there.keys():
            del self._told[id_]
            self._channel.say(ChannelMessage("gone", {"id": id_}))
        for id_, (listener, who) in there.items():
            if self._told.get(id_) == (id_ in opened):
                continue
            self._told[id_] = id_ in opened
            session = opened.get(id_)
            if session is not None:  # TLS may have proved more since
                who = session.membership.session.client.identity
            said = {
                "id": id_,
                "door": list(door_of(listener.settings.uri)),
                "who": identity_as_said(who),
                "export": "" if session is None else session.name,
                "open": session is not None,
            }
            self._channel.say(ChannelMessage("here", said))

    # --- Clients of the newer process

    def given(self, message: ChannelMessage) -> None:
        """The newer process gives a client, if its disk is here. Raises `NotUnderstood`."""
        client = Given.of(message["client"], message.data)
        if len(message.descriptors) != 1:
            raise NotUnderstood(f"expected a client's socket, got {len(message.descriptors)}")
        self._judge(client, os.dup(message.descriptors[0]))

    def _judge(self, client: Given, descriptor: int) -> None:
        """Take a client of the newer process, or give it the disk. The descriptor belongs to this."""
        site, listener = client.site, listener_at(self._office, client.door)
        if site is None:
            lists = self.gifts.lists() and not self.ending
            whose = Whose.TAKEN if lists else Whose.YOURS
        else:
            used = self.gifts.is_used(site)
            whose = self._giving.answer(site, used=used, ending=self.ending)
        if whose is Whose.TAKEN and listener is None:
            whose = Whose.LATER  # nobody here knows what holds for who comes there
        if whose is Whose.LATER:
            self._later.append((client, descriptor))
            return
        number = {"number": client.number}
        try:
            if whose is Whose.TAKEN:
                self._giving.stays(client.session_id, site)
                take(self._channel.say, client, descriptor, partial(self._begin, client))
            elif site is None:
                self._channel.say(ChannelMessage("yours", number))
            else:
                self._office.tasks.start_soon(self.gifts.give, site, number)
        finally:
            os.close(descriptor)

    def _begin(self, client: Given, stream: trio.SocketStream) -> None:
        listener = listener_at(self._office, client.door)
        if listener is None:  # it was closed this moment
            stream.socket.close()
            return
        self._told[client.session_id] = False  # the newer process counts it
        self._office.take(listener, stream, client)

    # --- Exports that are led elsewhere

    @contextmanager
    def sessions_elsewhere(self, exports: Collection[str]) -> Iterator[None]:
        """Have the newer process have sessions of these, as long as something is done for it."""
        self._sessions_elsewhere |= {*exports}
        try:
            yield
        finally:
            self._sessions_elsewhere -= {*exports}
            self._giving.stays(SWITCH, None)

    async def may_lead(self, led: Led) -> None:
        """See `Pauses`: exports are led elsewhere by the home of their disk, to a disk that has its home there,
        or will have. Raises `NotDone`, or `NotHere`: the newer process may.
        """
        given = {name for name, (was, _to) in led.items() if was is None or self._has_given(was)}
        here = {each.name for each in self._office.service.running} & {*led}
        if here & self._sessions_elsewhere or (given and here):
            both = ", ".join(map(shown, sorted(here)))
            raise NotDone(f"{both} has sessions in two processes, until this one has ended")
        if given and given != {*led}:
            raise NotDone(
                "some of them are served by the newer process: switch one after the other"
            )
        for _was, to in led.values():
            site = _site(to)
            if not given and self._giving.is_given(site):
                raise NotDone(
                    f"{to.server.name} is served by the newer process, and these sessions are not"
                )
            if not given:
                self._giving.stays(SWITCH, site)
                continue
            used = self.gifts.is_used(site)
            if self._giving.answer(site, used=used, ending=self.ending) is not Whose.YOURS:
                raise NotDone(
                    f"{to.server.name} has sessions here, and the newer process would go there"
                )
            await self.gifts.give_up(site)
        if given:
            raise NotHere("the newer process serves it")

    def _has_given(self, location: Location) -> bool:
        return self._giving.is_given(_site(location))

    # --- Clients of ours

    async def takes(self, client: Given, descriptor: int, export: str | None) -> bool:
        """See `Homes`: hand it over, if its disk was given."""
        site = client.site
        if site is None or not self._giving.is_given(site):
            os.close(descriptor)
            if site is not None:
                self._giving.stays(client.session_id, site)
            return False
        self._giving.stays(client.session_id, None)
        return await self.asking.given(self._channel.say, client, descriptor)

    def stays(self, client: str, site: DiskSite | None) -> None:
        """See `Homes`."""
        self._giving.stays(client, site)

    def _have_stay(self, core: ServerNegotiation) -> None:
        """A client has asked about an export, and was told: what it was told has to hold if it opens it now."""
        service, name = self._office.service, core.asked_for
        route = None if name is None else service.config.route(name)
        location = None if name is None or route is None else service.location(name, route)
        if location is not None:
            key = self._talking[core] = f"negotiation {next(self._numbers)}"
            self._giving.stays(key, _site(location))


def _site(location: Location) -> DiskSite:
    return DiskSite.at(location.server.where, location.name)
