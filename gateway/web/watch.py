"""What changes in the gateway, for whoever looks on; and what its last quarter of an hour was like.

One task asks the gateway every `EVERY_SECONDS`, however many look on, and keeps a point of each answer. So
whoever opens the page sees a curve at once. Everybody who looks on has a queue with a bound: if he does not
take what he is told, he is told no more, and has to begin anew.

A point has what was done since the point before it, so it is right whatever the counts were when we began.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from gateway.counts.seconds import BOUNDS
from gateway.web.gateway import Gateway, NotHeard, data_of

EVERY_SECONDS = 2.0
"""How often the gateway is asked: of 10,000 sessions that is a fiftieth of its time."""

HISTORY_SECONDS = 900
"""A quarter of an hour."""

MOST_WATCHERS = 40
"""Who may look on at a time: as many as there are pages open; each costs a connection for good."""

MOST_UNTOLD = 200
"""Events that wait for one of them: some seconds of a busy log."""

MOST_WATCH_SECONDS = 3600.0
"""How long anybody looks on before he has to ask again, with a token that is good then."""

STILL_HERE_SECONDS = 15.0
"""How often something is said when there is nothing to say, so that a proxy does not end it."""

VARIES = (
    *("uptime_seconds", "totals", "hub", "events", "sessions", "negotiations"),
    *("waits_for_sessions", "sessions_end_in_seconds", "stuck"),
)
"""What of `status` is different each time; points have it."""

LATENCY_SECONDS = 20.0
"""Of how long the latency of a point is: one request in many is timed, and of too few nothing can be said."""

SHARES = {"p50": 0.5, "p99": 0.99}

Event = tuple[str, Any]
"""What kind it is, and its data."""


class TooMany(Exception):
    """So many look on that nobody else may."""


@dataclass(eq=False)
class Watcher:
    """Somebody who looks on."""

    send: trio.MemorySendChannel[Event]
    receive: trio.MemoryReceiveChannel[Event]


class Lookout:
    """Looks at the gateway, and tells whoever looks on."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watchers: set[Watcher] = set()
        self._points: deque[dict[str, Any]] = deque(maxlen=int(HISTORY_SECONDS / EVERY_SECONDS))
        self._before: tuple[float, Mapping[str, Any]] | None = None
        self._times: deque[list[int]] = deque(maxlen=1 + round(LATENCY_SECONDS / EVERY_SECONDS))
        """How many requests took how long, at each of the last looks."""
        self._status: dict[str, Any] | None = None
        self._log_at = 0
        self.away: str | None = None
        """Why the gateway was not heard the last time; None: it was."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The points of the last quarter of an hour, the oldest first."""
        return list(self._points)

    @property
    def watching(self) -> int:
        """How many look on."""
        return len(self._watchers)

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            try:
                await self.look()
            except NotHeard as error:
                self.away = str(error)
                self._tell("away", {"why": self.away})
            await trio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """Look once. Raises `NotHeard`."""
        status = await self._gateway.status()
        self.away = None
        point = self._point(time.time(), status)
        if point is not None:
            self._points.append(point)
            self._tell("point", point)
        if _steady(status) != (None if self._status is None else _steady(self._status)):
            self._tell("status", status)
        self._status = status
        if self._watchers:
            await self._look_at_log()

    def _point(self, now: float, status: Mapping[str, Any]) -> dict[str, Any] | None:
        before, self._before = self._before, (now, status)
        times = _times_in(status)
        if before is None or before[1]["started"] != status["started"]:
            self._times.clear()  # of another gateway, whose counts began anew
            self._times.append(times)
            return None
        then, old = before
        self._times.append(times)
        seconds = max(now - then, 0.001)
        return {
            "time": round(now, 3),
            "seconds": round(seconds, 3),
            "sessions": status["sessions"],
            "stuck_sessions": status["stuck_sessions"],
            "latency": latency_of(
                [new - old for new, old in zip(times, self._times[0], strict=True)]
            ),
            **_done_between(old["totals"], status["totals"]),
        }

    async def _look_at_log(self) -> None:
        answer = await self._gateway.look("log", {"after": self._log_at})
        lines = data_of(answer)["lines"]
        if lines:
            self._log_at = lines[-1]["number"]
            self._tell("log", lines)

    def _tell(self, kind: str, data: Any) -> None:
        for each in list(self._watchers):
            try:
                each.send.send_nowait((kind, data))
            except trio.WouldBlock:
                self._leave(each)

    def _leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        watcher.send.close()

    @contextmanager
    def _watcher(self) -> Iterator[Watcher]:
        if len(self._watchers) >= MOST_WATCHERS:
            raise TooMany(f"{MOST_WATCHERS} look on already, come again")
        watcher = Watcher(*trio.open_memory_channel[Event](MOST_UNTOLD))
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._leave(watcher)

    async def events(self) -> AsyncGenerator[Event]:
        """Give what changes from now on, after the state that it changes; ends when there is too much of it.
        Raises `TooMany` before anything is given. An event with an empty name says that we are still here.
        """
        with self._watcher() as watcher:
            if self._status is not None:
                yield "status", self._status
            if self.away is not None:
                yield "away", {"why": self.away}
            until = trio.current_time() + MOST_WATCH_SECONDS
            while trio.current_time() < until:
                event: Event | None = ("", None)
                with trio.move_on_after(STILL_HERE_SECONDS):
                    event = await _next(watcher)
                if event is None:
                    return
                yield event


async def _next(watcher: Watcher) -> Event | None:
    try:
        return await watcher.receive.receive()
    except trio.EndOfChannel:
        return None


def _steady(status: Mapping[str, Any]) -> dict[str, Any]:
    steady = {name: value for name, value in status.items() if name not in VARIES}
    for part, varies in (("upstreams", "seconds"), ("listeners", "handshakes")):
        steady[part] = [{**each, varies: None} for each in status.get(part, ())]
    return steady


def _done_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Give what was done between two totals, as numbers."""

    def more(what: str) -> dict[str, int]:
        return {
            name: count - old[what].get(name, 0)
            for name, count in new[what].items()
            if count != old[what].get(name, 0)
        }

    return {
        "requests": more("requests"),
        "bytes": {name: size for name, size in more("bytes").items() if name in ("READ", "WRITE")},
        "errors": sum(more("errors").values()),
    }


def _times_in(status: Mapping[str, Any]) -> list[int]:
    """Give how many requests took how long, whatever they were."""
    sums = [0] * (len(BOUNDS) + 1)
    for times in status["totals"]["seconds"].values():
        for number, count in enumerate(times["buckets"]):
            sums[number] += count
    return sums


def latency_of(counts: Sequence[int]) -> dict[str, float] | None:
    """Say under how many seconds these shares of all were, from how many were in each bucket; None: there are
    none. Inside a bucket they are taken to be spread evenly: right within a factor of two, and mostly better.
    """
    if not sum(counts):
        return None
    return {name: round(_under(share, counts), 7) for name, share in SHARES.items()}


def _under(share: float, counts: Sequence[int]) -> float:
    left = share * sum(counts)
    for number, count in enumerate(counts):
        if count and left <= count:
            upper = BOUNDS[min(number, len(BOUNDS) - 1)]
            lower = BOUNDS[number - 1] if number else 0.0
            return lower + (upper - lower) * left / count
        left -= count
    return BOUNDS[-1]


def server_sent(event: Event) -> bytes:
    """Give an event as browsers read them; without a name it is a comment."""
    kind, data = event
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode() if kind else b": still here\n\n"
