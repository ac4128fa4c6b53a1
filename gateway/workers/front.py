"""What the child that speaks HTTP (`gateway.web`) asks of the gateway alone, answered for all workers: the log,
what was done with each export, and whether the gateway lives.

Each worker keeps the last lines of its log, and numbers them by itself. They are fetched when somebody asks,
and numbered here as they come, among those of the supervisor; each line has its time. Counts of exports are
fetched whole, and put together with those of workers that have died (`gateway.workers.past`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import trio

from gateway.admin.control import ControlAnswer, Misunderstood, Verb, no_arguments
from gateway.log.recent import Recent
from gateway.wire.limits import KIB, MIB
from gateway.workers.asking import NotThere
from gateway.workers.desk import Desk
from gateway.workers.worker import Worker

EXPORTS_IN_A_LINE = 100
"""As many as a worker tells of in a line, which is some tens of KiB."""

MOST_LINE_BYTES = 4 * MIB
"""Of a line of a worker's: a hundred exports, each with the longest name and all counts that there are."""


class Front:
    """Answers the child. `alive` comes back when the hubs of all workers have gone round."""

    def __init__(self, desk: Desk, recent: Recent, alive: Callable[[], Awaitable[None]]) -> None:
        self._desk = desk
        self._recent = recent
        self._all_are_alive = alive
        self._fetched: dict[int, tuple[str, int]] = {}
        """By a worker's number: which one it was, and the number of its last line."""
        self._fetching = trio.Lock()

    def verbs(self) -> dict[str, Verb]:
        """Give the verbs, by their names, as `gateway.app.web.verbs_of` has them."""
        return {"alive": self._alive, "log": self._log, "counts": self._counts}

    async def _alive(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        await self._all_are_alive()
        return ControlAnswer(True, data={})

    async def _log(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        after = arguments.get("after", 0)
        if arguments.keys() - {"after"} or isinstance(after, bool) or not isinstance(after, int):
            raise Misunderstood('"after" is the number of a line')
        async with self._fetching:
            for worker in self._desk.inquiries.workers:
                await self._fetch(worker)
        return ControlAnswer(True, data={"lines": self._recent.after(after)})

    async def _fetch(self, worker: Worker) -> None:
        run, last = self._fetched.get(worker.number, ("", 0))
        if not worker.serves:
            return
        now = worker.run
        try:
            answer = await self._desk.inquiries.question(
                worker, "log", {"after": last if run == now else 0}
            )
        except NotThere:
            return
        for line in [] if answer.data is None else answer.data["lines"]:
            last = line["number"]
            self._recent.take(line)
            self._fetched[worker.number] = now, last

    async def _counts(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        said, _problems = await self._desk.inquiries.of_each(self._counts_of)
        rows = self._desk.past.counts(said)

        async def tell(send: Callable[[bytes], Awaitable[None]]) -> None:
            for at in range(0, len(rows), EXPORTS_IN_A_LINE):
                some = rows[at : at + EXPORTS_IN_A_LINE]
                await send(json.dumps({"exports": some}).encode() + b"\n")
            await send(b'{"end": true}\n')

        async def nothing() -> None:
            pass

        return ControlAnswer(True, data={}, undo=nothing, while_connected=True, then=tell)

    async def _counts_of(self, worker: Worker) -> list[Mapping[str, Any]]:
        """Give what a worker tells. Raises `NotThere`."""
        more = bytearray()
        _answer, stream = await self._desk.inquiries.held(worker, "counts", {}, more)
        rows: list[Mapping[str, Any]] = []
        async with stream:
            while True:
                line, newline, rest = bytes(more).partition(b"\n")
                if newline:
                    more[:] = rest
                    said = json.loads(line)
                    if "end" in said:
                        return rows
                    rows += said["exports"]
                    continue
                data = b""
                if len(more) <= MOST_LINE_BYTES:
                    with suppress(trio.BrokenResourceError):
                        data = await stream.receive_some(64 * KIB)
                if not data:
                    raise NotThere(f"worker {worker.number} has ended before it had told all")
                more += data
