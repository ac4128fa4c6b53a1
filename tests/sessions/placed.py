"""Policies that tests put at an export: how, and one that holds what it is asked."""

from __future__ import annotations

import trio
import trio.testing
from pydantic import PrivateAttr

from gateway.access.chain import Placed
from gateway.policy import Next, Policy, Request, Result
from tests.sessions.gateways import Gateway


def place(gateway: Gateway, *policies: Policy) -> None:
    """Have policies stand at the only export, the first nearest to the client."""
    access = gateway.service.access
    chain = tuple(Placed(each, type(each).__name__.lower()) for each in policies)
    access._of_exports = {0: chain}


class Waiting(Policy):
    """Holds every ranged command until it is let go."""

    _let_go: trio.Event = PrivateAttr(default_factory=trio.Event)
    _under_way: list[Request] = PrivateAttr(default_factory=list)
    _cancelled: list[Request] = PrivateAttr(default_factory=list)

    async def each(self, request: Request, next: Next) -> Result:
        self._under_way.append(request)
        try:
            await self._let_go.wait()
        except trio.Cancelled:
            self._cancelled.append(request)
            raise
        result: Result = await next(request)
        return result
