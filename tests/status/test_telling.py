"""What is told of exports to whoever writes metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.hub.session import Hold
from gateway.status.telling import tell_counts
from gateway.wire.constants import Cmd, Errno
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
        second.disk.wrote_again(512)
        assert (await told(there))["x"]["totals"]["replayed_bytes"] == 512
        assert there.service.counts.all().replayed_bytes == 512
        second.traffic.held = False
        for stream in there.streams:
            await stream.aclose()
        first.relaying.go_on(Hold.PAUSED)
        await until(lambda: not there.service.running)
        export = (await told(there))["x"]
        assert (export["sessions"], export["held"], export["losses_untold"]) == (0, {}, 0)
        assert export["totals"]["losses"] == 3


async def test_refusals_are_counted_by_policy(tmp_path: Path) -> None:
    policies = 'policies = [ { use = "protect", ranges = ["0-4095"] }, { use = "readonly" } ]\n'
    kinder = EXPORT.replace('"x"', '"y"') + policies.replace(', { use = "readonly" }', "")
    async with house(tmp_path, LISTEN + MEMORY + EXPORT + policies + kinder) as there:
        strict, other = await there.session("x"), await there.session("y")
        assert await strict.error(Cmd.WRITE, 8192, 512, data=bytes(512)) == Errno.EPERM
        assert await strict.error(Cmd.READ, 1 << 40, 512) == Errno.EINVAL
        assert await other.error(Cmd.WRITE, 0, 512, data=bytes(512)) == Errno.EPERM
        found = await told(there)
        said = {name: each["totals"]["refused_by"] for name, each in found.items()}
        assert said == {
            "x": {"readonly": {"WRITE EPERM": 1}},
            "y": {"protect": {"WRITE EPERM": 1}},
        }
        assert found["x"]["totals"]["refused"] == {"WRITE EPERM": 1, "READ EINVAL": 1}
