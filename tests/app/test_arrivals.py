"""Who is connected, when one client has two connections: another gateway leads it here again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing

from gateway.app.arrivals import Arrivals
from gateway.app.standing import Present
from gateway.counts.totals import Counts
from gateway.handover.given import Given
from gateway.identity import Identity
from tests.embedded.peers import socket_pair


@pytest.mark.parametrize("first", [0, 1])
async def test_a_connection_that_ends_leaves_the_other_one_known(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(
        _self: object, _listener: object, stream: trio.SocketStream, *_: object
    ) -> None:
        await stream.receive_some()

    monkeypatch.setattr(Arrivals, "_serve", serve)
    service = cast("Any", SimpleNamespace(counts=Counts(), log=structlog.wrap_logger(None)))
    arrivals = Arrivals(service, cast("Any", None), Present(), None)
    listener = cast("Any", object())
    clients = []
    async with trio.open_nursery() as tasks:
        for port in (1, 2):
            ours, theirs = socket_pair()
            clients.append(ours)
            given = Given(0, "abc-1", (), Identity.at("192.0.2.1", port), None, 0.0, None)
            arrivals.take(listener, theirs, given, tasks)
        await trio.testing.wait_all_tasks_blocked()
        newer = arrivals.clients["abc-1"]
        await clients[first].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert arrivals.counts[listener] == 1
        assert arrivals.clients == ({"abc-1": newer} if first == 0 else {})
        await clients[1 - first].aclose()
    assert not arrivals.clients
