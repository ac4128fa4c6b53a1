"""One negotiation with an upstream, held in its option phase while it mirrors what a client asks.

The client's questions about an export (LIST_META_CONTEXT, SET_META_CONTEXT, INFO, GO) are asked of the upstream
on the same terms, so that both sides agree on framing and contexts. Nothing is dialled before the first of
them. What is asked on one connection is for `gateway.upstream.option_phase`.

Old servers: an answer that is garbage, or a closed connection, where an option was sent means that the server
has lost its way, or has died. Then the same is tried on a new connection, and perhaps with less
(`gateway.upstream.ladder`); each session's log line shows the rung.

All that is asked for one client about one export, over however many connections, and all pauses between them,
have to be done within `negotiate_seconds`: a client has a disk that stands still meanwhile, or a monitor.
Connecting has `connect_seconds` of its own, for each of the client's questions.

Who says so gets a connection that was made ahead (`gateway.upstream.warm`), if there is one. Nothing was asked
on it yet, so it is good for any client; and whatever a client asks before it has its link may be asked again,
so one that turns out to be dead costs nothing but the dial that it was to save.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.quirks import Dialect, Evidence
from gateway.upstream.allowance import Allowance
from gateway.upstream.errors import Died, LostTheWay, Silent, Unreachable
from gateway.upstream.greeting import greeted
from gateway.upstream.ladder import Next, Rung
from gateway.upstream.link import Link, Terms
from gateway.upstream.option_phase import InDoubt, OptionPhase
from gateway.upstream.server import Server
from gateway.upstream.slots import Slot
from gateway.wire.constants import Rep
from gateway.wire.handshake import ListedExport, MetaContext

_Result = TypeVar("_Result")

WARM_ANSWER_SECONDS = 2.0
"""How long the first answer may take on a connection that was made ahead. Every server has that one (on
framing) at hand, without a look at its disk. A server that vanished without a word, by a loss of power, never
answers; what is left of the client's `negotiate-seconds` is for the connection that is dialled then."""

FIRST_PAUSE_SECONDS = 0.1
"""How long we wait before we ask a server again that has lost its way, if it may not be asked for less. One
that is being restarted is back soon."""

MOST_PAUSE_SECONDS = 1.0
"""What doubling ends at."""


class Negotiation:
    """Negotiates with one upstream on behalf of one client. Close it with `aclose` unless `go` took it.

    `warm`: a connection that was made ahead will do. Not for a link that takes the place of another: that has
    to lead to whatever is at the upstream's address now. `for_client`: if it is not to be had, a client is
    turned away. `beside`: it is one more than those that a client has already. `slot`: one among the
    upstream's connections that it has already. `lowest`: the rung below which nothing is asked, which is that
    of the link in whose place this one is to be. `allowance`: what is left of the time for opening an export;
    None: all of it. `listed`: the client has a list of what is there, and may ask about all of it.
    """

    def __init__(
        self,
        server: Server,
        *,
        warm: bool = False,
        for_client: bool = True,
        beside: bool = False,
        slot: Slot | None = None,
        lowest: Rung = Rung.EXPORT_NAME,
        allowance: Allowance | None = None,
        listed: bool = False,
    ) -> None:
        self._server = server
        self._slot = slot
        self._warm = warm
        self._for_client = for_client
        self._beside = beside
        self._lowest = lowest
        self._phase: OptionPhase | None = None
        self._info_first = False
        self._name: str | None = None
        self._has_list = listed
        self.allowance = allowance or Allowance(server.settings.negotiate_seconds)
        """How long it may still take until the export that is asked about is opened."""

    async def contexts(self, terms: Terms) -> tuple[MetaContext, ...]:
        """Select contexts: give those that the upstream has, with its ids. Raises `Refusal`."""
        return _there_are(await self._climb(terms, OptionPhase.contexts, looks=False))

    async def list_contexts(
        self, terms: Terms, queries: tuple[str, ...]
    ) -> tuple[MetaContext, ...]:
        """Ask which contexts there are. Raises `Refusal`."""
        return _there_are(await self._climb(terms, lambda phase: phase.list_contexts(queries)))

    async def describe(
        self, terms: Terms, *, thoroughly: bool = False
    ) -> tuple[Export, Dialect, tuple[str, ...]]:
        """Ask what the export is, as INFO does; it is repaired, by quirks whose names come with it.

        `thoroughly`: find out also what no quirk depends on. Raises `Refusal`.
        """
        return await self._climb(terms, lambda phase: phase.describe(thoroughly=thoroughly))

    @property
    def evidence(self) -> Evidence | None:
        """What the server has shown of itself on the connection that was used last."""
        return None if self._phase is None else self._phase.seen

    async def list_exports(self) -> list[ListedExport]:
        """Ask which exports there are, on the connection that is there; if there is none, on one that is for
        the next question then: a server may take a single one (qemu-nbd up to 3.0). It is not waited for that
        a server comes back. Raises `Refusal`.
        """
        server = self._server
        self._has_list = True
        if self._phase is not None and not self._phase.may_list:
            if not server.slots.full:
                return await listed_apart(server)
            await self.aclose()
        allowance = Allowance(server.settings.negotiate_seconds)
        fresh = self._phase is None
        if self._phase is None:
            slot = await server.slot(patient=False)
            handshake = await greeted(
                server, slot, patient=False, for_client=self._for_client, allowance=allowance
            )
            self._phase = OptionPhase(server, handshake)
            self._phase.rung = server.ladder.first(trio.current_time())
        self._phase.spend_from(allowance)
        try:
            return await self._phase.list_exports()
        except LostTheWay as error:
            await self.aclose()
            if not fresh:  # it may only have been kept waiting for too long (Q-S30)
                return await self.list_exports()
            raise Unreachable(f"upstream {server.name!r}: {error}") from None
        except BaseException as error:
            over = not isinstance(error, Refusal) or isinstance(error, Unreachable)
            if over or self._phase.is_broken:
                await self.aclose()
            raise

    async def go(self, terms: Terms) -> Link:
        """Open the export; the link is the caller's. Raises `Refusal`."""
        link = await self._climb(terms, OptionPhase.open, looks=False)
        self._phase = None
        self.allowance = Allowance(self._server.settings.negotiate_seconds)
        if self._server.warm is not None:
            self._server.warm.served()
        return link

    async def aclose(self) -> None:
        """End the negotiation, in good order where there is one."""
        phase, self._phase = self._phase, None
        if phase is not None:
            await phase.aclose()

    async def _climb(
        self,
        terms: Terms,
        step: Callable[[OptionPhase], Awaitable[_Result]],
        *,
        looks: bool = True,
    ) -> _Result:
        """Do a step on a connection of these terms; where the server loses its way, do as the ladder says. It
        `looks` at the export, and neither opens it nor selects contexts.
        """
        if self._name not in (None, terms.name):
            self.allowance = Allowance(self._server.settings.negotiate_seconds)
        self._name = terms.name
        if self._phase is not None:
            if self._phase.suits(terms, looks=looks):
                self._phase.spend_from(self.allowance)
            else:
                await self.aclose()
        climb = self._server.ladder.climb(self._lowest)
        wanted = {"structured": terms.structured, "extended": terms.extended}
        connecting = Allowance(self._server.settings.connect_seconds)
        warm, pause_seconds = self._warm, FIRST_PAUSE_SECONDS
        lost: LostTheWay | None = None
        while True:
            fresh = False
            try:
                if self._phase is None and warm:
                    rung = climb.rung(trio.current_time())
                    self._phase, warm = await self._take(terms, rung), False
                if self._phase is None:
                    fresh = True
                    self._phase = await self._connected(connecting, lost)
                if not self._phase.is_agreed:
                    await self._phase.agree(terms, climb.rung(trio.current_time()))
                self._phase.info_first |= self._info_first
                if looks and self._has_list:
                    await self._phase.make_room()
                result = await step(self._phase)
                rung, now = self._phase.rung, trio.current_time()
                if not self._phase.has_answered or climb.answered(rung, now, **wanted):
                    return result
                await self.aclose()
            except InDoubt:
                self._info_first = True
                await self.aclose()
            except LostTheWay as error:
                await self.aclose()
                if not fresh:
                    continue  # it may only have been kept waiting for too long (Q-S30)
                lost = error
                match climb.failed(trio.current_time(), **wanted):
                    case Next.NOTHING:
                        raise Unreachable(f"upstream {self._server.name!r}: {error}") from None
                    case Next.AFTER_A_PAUSE:
                        await self._pause(pause_seconds, error)
                        pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)
                    case Next.AT_ONCE:
                        pass
            except Died as error:
                await self._pause(pause_seconds, error)
                pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)
            except BaseException as error:
                if isinstance(error, Silent):
                    self.allowance.why = error.text
                over = not isinstance(error, Refusal) or isinstance(error, Unreachable)
                if over or (self._phase is not None and self._phase.is_broken):
                    await self.aclose()
                raise

    async def _connected(self, connecting: Allowance, lost: LostTheWay | None) -> OptionPhase:
        """Give a new connection, greeted. Raises `Unreachable`."""
        server, slot = self._server, self._slot
        began, before = trio.current_time(), self.allowance.left
        if not self.allowance.left:
            text = f"has not opened the export within {self.allowance.seconds:g} s"
            text = f"upstream {server.name!r} {text}{_after(lost)}"
            raise Silent(self.allowance.why or text)
        try:
            if slot is None or slot.left:
                slot = await server.slot(seconds=connecting.left)
            left = connecting.left - (trio.current_time() - began)
            handshake = await greeted(
                server,
                slot,
                patient=True,
                for_client=self._for_client,
                beside=self._beside,
                seconds=max(0.0, left),
                allowance=self.allowance,
            )
            return OptionPhase(server, handshake)
        except Unreachable as error:
            if lost is None:
                raise
            raise type(error)(f"{error.text}{_after(lost)}") from None
        finally:
            answering = before - self.allowance.left
            connecting.take(trio.current_time() - began - answering)

    async def _pause(self, seconds: float, lost: LostTheWay | Died) -> None:
        """Wait for a server that may not be asked for less, or dies too early for that to make a difference.
        Raises `Unreachable` when no time is left.
        """
        try:
            with self.allowance.spend():
                await trio.sleep(seconds)
        except trio.TooSlowError:
            if isinstance(lost, Died):
                raise lost from None
            whose = f"upstream {self._server.name!r}"
            tried = (
                f"lost its way at an option on every connection for {self.allowance.seconds:g} s"
            )
            less = "and is not asked for less than it has spoken before"
            raise Unreachable(f"{whose} has {tried}, {less}: {lost}") from None

    async def _take(self, terms: Terms, rung: Rung) -> OptionPhase | None:
        """Give a connection that was made ahead, if there is one and it is alive."""
        handshake = None if self._server.warm is None else await self._server.warm.take()
        if handshake is None:
            return None
        handshake.allowance = self.allowance
        phase = OptionPhase(self._server, handshake)
        try:
            # A dead one takes no more of the client's time than leaves enough for another.
            with trio.fail_after(min(WARM_ANSWER_SECONDS, self.allowance.left / 2)):
                await phase.agree(terms, rung)
        except (LostTheWay, Silent, trio.TooSlowError):
            await phase.aclose()
            return None
        except BaseException:
            await phase.aclose()
            raise
        return phase


async def listed_apart(server: Server) -> list[ListedExport]:
    """Ask a server which exports it has, on a connection for that alone. Raises `Refusal`."""
    negotiation = Negotiation(server)
    try:
        return await negotiation.list_exports()
    finally:
        await negotiation.aclose()


def _there_are(contexts: tuple[MetaContext, ...] | None) -> tuple[MetaContext, ...]:
    if contexts is None:
        raise Refusal(Rep.ERR_UNSUP, "the upstream has no meta contexts")
    return contexts


def _after(lost: LostTheWay | None) -> str:
    return "" if lost is None else f"; before that, at an option: {lost}"
