"""docs/status.md names whatever programs are told, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from gateway.counts.seconds import Seconds, said_of
from gateway.counts.totals import Became, Totals
from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.hub.ends import Cause
from gateway.hub.pace import Pace
from gateway.losses.records import Untold
from gateway.sessions.untold import loss_shown
from gateway.status.shown import exports_shown, gateway_shown, session_shown, upstreams_shown
from gateway.status.stuck import Stuck
from gateway.status.waits import Thing
from tests.sessions.gateways import gateway_before

PAGE = (Path(__file__).parents[2] / "docs" / "status.md").read_text()


def first_column(mark: str) -> Iterator[str]:
    [part] = re.findall(rf"<!-- {mark} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    for line in part.splitlines()[2:]:
        yield from re.findall(r"`([^`]+)`", line.split("|")[1])


@pytest.fixture(scope="module")
def shown() -> dict[str, dict[str, object]]:
    async def all_of_it() -> dict[str, dict[str, object]]:
        async with gateway_before(Server({"": MemoryDisk(4096)})) as gateway:
            client, service = gateway.client(), gateway.service
            await client.go()
            while not service.running:
                await trio.lowlevel.checkpoint()
            stuck = Stuck(service, service.log)
            [running] = service.running
            found = {
                "status": await gateway_shown(service, stuck, began=0, listeners=[], terms=[]),
                "session": session_shown(service, stuck, running),
                "export": (await exports_shown(service, None))[0][0],
                "upstream": (await upstreams_shown(service, {}))[0],
                "loss": loss_shown("disk", Untold(("why",), [(0, 512)], 1, nobody=True)),
                "totals": Totals().as_said(),
                "times": said_of(Seconds()),
                "hub": Pace().as_said(),
            }
            await client.stream.aclose()
            return found

    return trio.run(all_of_it)


@pytest.mark.parametrize(
    "what", ["status", "session", "export", "upstream", "loss", "totals", "times", "hub"]
)
def test_the_page_has_the_names(what: str, shown: dict[str, dict[str, object]]) -> None:
    assert list(first_column(f"names: {what}")) == list(shown[what])


def test_the_page_has_what_may_be_waited_for() -> None:
    assert list(first_column("waits")) == [str(thing) for thing in Thing]


def test_the_page_has_what_becomes_of_clients() -> None:
    assert list(first_column("handshakes")) == [str(became) for became in Became]


def test_the_page_has_all_causes() -> None:
    assert list(first_column("ends")) == [str(cause) for cause in Cause]
