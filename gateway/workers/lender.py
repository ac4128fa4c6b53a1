"""What workers borrow, on the supervisor's side: places of numbers (`ledger`), slices of rates (`rates`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio

from gateway.handover.message import ChannelMessage
from gateway.workers.ledger import Key, LendingBook
from gateway.workers.rates import LendingRates

Say = Callable[[int, ChannelMessage], object]


class Lender:
    """Lends to workers, who are known by their numbers; `say` tells one of them something."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.ledger = LendingBook()
        self._sooner = trio.Event()
        self.rates = LendingRates(self._granted, lambda: self._sooner.set())

    def heard(self, worker: int, message: ChannelMessage) -> bool:
        """Do what a worker asks; say whether it was about lending."""
        match message.kind:
            case "borrows":
                wants = list(zip(message["keys"], message["most"], strict=True))
                full = self.ledger.borrow(worker, wants)
                why = [] if full is None else [full.want, full.lent]
                said = {"number": message["number"], "full": why}
                self._say(worker, ChannelMessage("lent", said))
            case "gives back":
                self.ledger.give_back(worker, message["keys"])
            case "wants tokens":
                self.rates.ask(worker, message["key"], *message["wants"])
            case "gives tokens back":
                self.rates.give_back(message["key"], *message["tokens"])
            case _:
                return False
        return True

    def forget(self, worker: int) -> None:
        """A worker has died."""
        self.ledger.forget(worker)
        self.rates.forget(worker)

    async def run(self) -> None:
        """Lend to those who wait for a rate, when it is time, until cancelled."""
        doors = self.rates.doors
        while True:
            self._sooner = trio.Event()
            opening = doors.next_opening()
            seconds = math.inf if opening is None else max(0.0, opening - time.monotonic())
            with trio.move_on_after(seconds):
                await self._sooner.wait()
            doors.open_due(time.monotonic())

    def _granted(self, worker: int, key: Key, tokens: float) -> None:
        self._say(worker, ChannelMessage("tokens", {"key": key, "tokens": [tokens]}))
