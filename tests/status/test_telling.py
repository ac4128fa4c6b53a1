"""What is told of exports to whoever writes metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.hub.session import Hold
from gateway.status.telling import tell_counts
from tests.app.houses import EXPORT, LISTEN, MEMORY, House, house, until


async def told(there: House) -> dict[str, Any]:
    said: list[dict[str, Any]] = []

    async def send(lines: bytes) -> None:
        said.extend(json.loads(line) for line in lines.splitlines())

    await tell_counts(there.service, send)
    assert said[-1] == {"end": True}
    return {each["export"]: each for line in said for each in line.get("exports", [])}


async def test_what_is_held_and_untold_is_of_its_export(tmp_path: Path) -> None:
    async with house(tmp_path, LISTEN + MEMORY + EXPORT) as there:
        await there.session("x")
        await there.session("x")
        first, second = sorted(there.service.running, key=lambda each: each.began)
        export = (await told(there))["x"]
        assert (export["sessions"], export["in_flight"], export["held"]) == (2, 0, {})
        first.relaying.hold(Hold.PAUSED)
        second.traffic.held = True
        second.traffic.debt.has_to_hear("a server has gone", ())
        second.traffic.debt.losses_seen = 3
        export = (await told(there))["x"]
        assert export["held"] == {"pause": 1, "throttle": 1}
        assert export["losses_untold"] == 1
        assert export["totals"]["losses"] == 3
        second.traffic.held = False
        for stream in there.streams:
            await stream.aclose()
        first.relaying.go_on(Hold.PAUSED)
        await until(lambda: not there.service.running)
        export = (await told(there))["x"]
        assert (export["sessions"], export["held"], export["losses_untold"]) == (0, {}, 0)
        assert export["totals"]["losses"] == 3
