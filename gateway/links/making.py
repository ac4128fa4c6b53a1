"""Makes the links of a trunk: those that are wanted beside the first, and another one for each that is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import trio

from gateway.bundle.again import REJECTED_PAUSE_SECONDS, Rejections
from gateway.bundle.core import Bundle
from gateway.protocol.errors import Refusal
from gateway.upstream.allowance import Allowance
from gateway.upstream.coherence import Decision, check_required, sentence
from gateway.upstream.errors import Rejected
from gateway.upstream.link import Link, Terms
from gateway.upstream.negotiation import Negotiation
from gateway.upstream.server import Server
from gateway.upstream.slots import Slot

AGAIN_SECONDS = 0.5
"""When a link could not be made, the next try comes after so long at most. The upstream's own back-off, which
all who connect to it share, may make that longer."""


class Gone(Exception):
    """The server does not have the export any more; the text says how we know."""


class Making:
    """Makes links like the first, which was made on these terms. `say` writes to the log."""

    def __init__(
        self,
        server: Server,
        terms: Terms,
        first: Link,
        say: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self._server = server
        self._terms = terms
        self._first = first
        self._say = say
        self.decision = server.decide([first.export], first.quirks)
        """Over how many links the export is served, as far as is known."""
        self.unused: list[Link] = []
        """Links that were made beside the first, and are not used yet."""

    async def agree(self, allowance: Allowance | None = None) -> None:
        """Make all links that are wanted, before anybody is promised anything. That may take what is left of
        `allowance`. Raises `Refusal` if the configuration wants all of them or none, and they cannot be had.
        """
        check_required(self._server.mode.wanted, self.decision)
        if self.decision.count > 1:
            await self._make_others(allowance)
            check_required(self._server.mode.wanted, self.decision)

    async def others(self) -> list[Link]:
        """Give the links that are wanted beside the first: all, or none. Whoever takes them has to close
        them.
        """
        if self.decision.count > 1 and not self.unused:
            await self._make_others()
        others, self.unused = self.unused, []
        return others

    async def _make_others(self, allowance: Allowance | None = None) -> None:
        """Make the links that are wanted beside the first: all of them, or none."""
        failed: list[str] = []
        made: list[Link] = []

        async def make() -> None:
            try:
                made.append(await self.new(beside=True, allowance=allowance))
            except Refusal as refusal:
                failed.append(str(refusal))

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self.decision.count - 1):
                    nursery.start_soon(make)
        except BaseException:
            for link in made:
                link.close()
            raise
        exports = [link.export for link in (self._first, *made)]
        decision = self._server.decide(exports, self._first.quirks)
        if failed and decision.count > 1:
            why = f"no other could be made: {failed[0]}"
            reason = sentence(self._server.mode.wanted, 1, why)
            decision = Decision(1, reason, decision.may_offer_multi_conn)
        if decision.count == 1:
            for link in made:
                link.close()
            made = []
        self.decision, self.unused = decision, made
        self.say_why_fewer()

    def say_why_fewer(self) -> None:
        """Tell the log, once, why there are fewer links than are wanted."""
        reason = self.decision.reason
        if reason and self._server.told.is_news(self._terms.name, reason):
            self._say(reason, {})

    async def new(
        self,
        slot: Slot | None = None,
        *,
        beside: bool = False,
        allowance: Allowance | None = None,
    ) -> Link:
        """Make a link like the first, on no rung lower than that."""
        negotiation = Negotiation(
            self._server,
            for_client=False,
            beside=beside,
            slot=slot,
            lowest=self._first.rung,
            allowance=allowance,
        )
        try:
            return await negotiation.go(self._terms)
        finally:
            await negotiation.aclose()

    async def again(self, bundle: Bundle, *, has_slot: bool) -> Link:
        """Give a link in place of one that the bundle has lost, as soon as one can be made. `has_slot`: the
        slot of the lost one is still there for it. Raises `Gone`.
        """
        rejections = Rejections()
        while True:
            pause_seconds = AGAIN_SECONDS * (0.5 + random.random() / 2)
            try:
                slot = Slot(None) if has_slot else None
                return await self.new(slot, beside=bool(bundle.lines))
            except Rejected as rejected:
                bundle.why = str(rejected)
                gone = rejections.said(rejected.reply, trio.current_time())
                if gone and not bundle.lines:
                    text = f"the server is back, and has the export no more: {rejected}"
                    raise Gone(text) from None
                if rejections.at:
                    pause_seconds = REJECTED_PAUSE_SECONDS
            except Refusal as refusal:
                bundle.why = str(refusal)
                rejections.forget()
            await trio.sleep(pause_seconds)
