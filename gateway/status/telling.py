"""What was done with each export, told all at once to whoever writes metrics of it.

    {"verb": "counts"}
    {"ok": true, ..., "data": {}}
    {"exports": [{"export": "disk", "sessions": 1, "in_flight": 2, "held": {"claim": 1},
                  "losses_untold": 0, "totals": {...}}, ...]}
    {"end": true}

`exports` shows pages, in an order that bears what comes and goes between two of them, and has to sort for it.
Here all are gone through once, so a thousand cost a thousand times as much as one. Behind the answer come
lines, each of a few exports; the last says that it is the last.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import trio

from gateway.admin.control import ControlAnswer, Verb, no_arguments
from gateway.counts.totals import Totals
from gateway.sessions.counted import add_done
from gateway.sessions.service import Relayed, Service
from gateway.status.pages import in_slices
from gateway.status.shown import SUMMED_AT_A_TIME
from gateway.status.waits import held_here

EXPORTS_IN_A_LINE = 20
"""They are summed, and become JSON, in a third of a millisecond."""

Send = Callable[[bytes], Awaitable[None]]


def counts_of(service: Service) -> Verb:
    """Give the verb."""

    async def counts(arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)

        async def nothing() -> None:
            pass

        then = partial(tell_counts, service)
        return ControlAnswer(True, data={}, undo=nothing, while_connected=True, then=then)

    return counts


async def tell_counts(service: Service, send: Send) -> None:
    """Tell of all exports that were used."""
    sessions: dict[str, list[Relayed]] = {}
    for some in in_slices(list(service.running), SUMMED_AT_A_TIME):
        for each in some:
            name = service.counts.name_of(each.opened.counted_as)
            sessions.setdefault(name, []).append(each)
        await trio.lowlevel.checkpoint()
    for names in in_slices(list(service.counts.by_export()), EXPORTS_IN_A_LINE):
        ended = service.counts.by_export()
        rows = [await _row(service, name, ended[name], sessions.get(name, [])) for name in names]
        await send(json.dumps({"exports": rows}).encode() + b"\n")
    await send(b'{"end": true}\n')


async def _row(
    service: Service, name: str, ended: Totals, sessions: list[Relayed]
) -> dict[str, Any]:
    done, count, in_flight, untold = Totals(), 0, 0, 0
    held = Counter[str]()
    for some in in_slices(sessions, SUMMED_AT_A_TIME):
        for each in some:
            if each in service.running:  # else it is among those that have ended
                add_done(done, each)
                count += 1
                in_flight += each.traffic.commands_in_flight
                held.update(held_here(each))
                untold += bool(each.traffic.debt.why)
        await trio.lowlevel.checkpoint()
    done.add(ended)
    done.replayed_bytes = ended.replayed_bytes
    totals = done.as_said()
    del totals["seconds"]  # metrics have them of the gateway and its upstreams
    return {
        "export": name,
        "sessions": count,
        "in_flight": in_flight,
        "held": held,
        "losses_untold": untold,
        "totals": totals,
    }
