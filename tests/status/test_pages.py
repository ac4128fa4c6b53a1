"""Answers about many sessions and exports come in pages, whatever names clients ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from gateway.admin.control import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES
from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.status.pages import PAGE, next_ones
from gateway.status.stuck import Stuck
from gateway.status.verbs import verbs_of
from tests.sessions.gateways import gateway_before

LONG = "\x01" * 4090
"""JSON has six letters for each of these."""

SESSIONS = MAX_ANSWER_BYTES // len(json.dumps(LONG)) + 3
"""One answer could not have so many."""


async def pages(verb: Any, what: str, key: str) -> Iterator[list[dict[str, Any]]]:
    """Give all pages, each as small as a client of the control socket takes it."""
    found: list[list[dict[str, Any]]] = []
    more = True
    after: dict[str, str] = {}
    while more:
        assert len(json.dumps({"verb": what, **after})) < MAX_REQUEST_BYTES
        data = (await verb(after)).data
        assert len(json.dumps(data)) < MAX_ANSWER_BYTES - 1000  # there is something around it
        found.append(data[what])
        more, after = data["more"], {"after": data[what][-1][key]}
    return iter(found)


async def test_the_longest_names_are_shown_once_each() -> None:
    server = Server({"": MemoryDisk(4096)})
    async with gateway_before(server, export='upstream-name = ""\n') as gateway:
        service, names = gateway.service, [f"{LONG}{n:06}" for n in range(SESSIONS)]
        clients = [gateway.client() for _ in names]
        for client, name in zip(clients, names, strict=True):
            await client.go(name)
        while len(service.running) < SESSIONS:
            await trio.lowlevel.checkpoint()
        verbs = verbs_of(service, Stuck(service, service.log), house=None)  # type: ignore[arg-type]
        for what, key in (("sessions", "session"), ("exports", "export")):
            shown = [each for page in await pages(verbs[what], what, key) for each in page]
            assert sorted(each["export"] for each in shown) == names
        for client in clients:
            await client.stream.aclose()
        while service.running:
            await trio.lowlevel.checkpoint()
        shown = [
            each for page in await pages(verbs["exports"], "exports", "export") for each in page
        ]
        assert sorted(each["export"] for each in shown) == names


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE])
async def test_what_stays_is_shown_once_whatever_comes_and_goes(count: int) -> None:
    there = {(7919 * n) % 10_007: n % 3 > 0 for n in range(count)}  # in no order; a third goes
    stays = sorted(number for number, stay in there.items() if stay)
    shown: list[int] = []
    after = None
    while page := await next_ones(there, lambda number: number, after, PAGE):
        assert page == sorted(page)
        shown += page
        after = page[-1]
        there = {each: True for each in there if there[each]}  # those that go, and the last one too
        there.pop(after, None)
    assert [number for number in shown if number in stays] == stays
    assert len(shown) == len(set(shown))
