"""What is asked of the gateway as a whole, answered by the supervisor for all workers.

A verb goes to the workers that it concerns (`gateway.workers.asking`), and what they answer is put together
(`gateway.workers.merged`). What is about one export goes to the home of its disk; if that has none, and for
patterns, it goes to all. What an operator sets is in `gateway.workers.orders`.

`switch` is refused: it would lead the clients of one disk to another one, whose home is elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import trio

from gateway.admin.control import ControlAnswer, Misunderstood, Verb, no_arguments
from gateway.status.pages import AnswerPage
from gateway.status.verbs import deadline_in, place_of
from gateway.status.waits import iso_time
from gateway.wire.limits import KIB
from gateway.workers import merged
from gateway.workers.asking import Inquiries, NotThere, State
from gateway.workers.crew import Crew
from gateway.workers.orders import Orders
from gateway.workers.past import Past
from gateway.workers.worker import Worker

SWITCH = (
    "with several workers no export is switched yet: its clients would stay in the worker that is the home of"
    " the disk that they leave, and the other disk's home may be another one: write workers = 1"
)

UPGRADE = "a gateway with several workers is not upgraded while it runs yet: it takes a restart"


class Desk:
    """Answers for all. `state` gives the configuration in force, and its table of homes; `end` has all end, and
    their sessions go on for so many seconds (None: as the configuration says), and says whether that is news;
    `began` is a time of `time.time`.
    """

    def __init__(
        self,
        crew: Crew,
        state: State,
        reload: Callable[[], Awaitable[ControlAnswer]],
        end: Callable[[float | None], bool],
        began: float,
    ) -> None:
        self._crew = crew
        self._state = state
        self._reload = reload
        self._end = end
        self._began = began
        self.inquiries = Inquiries(crew, state)
        self.orders = Orders(crew, self.inquiries)
        self.past = Past()
        """What workers have done that have died."""

    def verbs(self) -> dict[str, Verb]:
        """Give the verbs, by their names."""
        return {
            **self.orders.verbs(),
            "drain": self._drain,
            "reload": self._reloaded,
            "trace": self._trace,
            "switch": self._switch,
            "upgrade": self._upgrade,
            "losses": self._losses,
            "status": self._status,
            "sessions": self._sessions,
            "exports": self._exports,
            "upstreams": self._upstreams,
            "disconnect": self._disconnect,
        }

    # --- Questions

    async def _status(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)

        async def of_one(worker: Worker) -> Mapping[str, Any]:
            answer = await self.inquiries.ask(worker, "status", {})
            if answer.data is None:
                raise NotThere("; ".join(answer.problems))
            return answer.data

        said, problems = await self.inquiries.of_each(of_one)
        if not said:
            return ControlAnswer(False, problems=problems)
        data = [*said.items()]
        sessions = {number: each["sessions"] for number, each in data}
        found = self.past.status(said)
        noted = self.orders.paused_where_nobody_says(data, trio.current_time())
        found["paused"] = sorted({*found["paused"], *noted})
        found["started"] = iso_time(self._began)
        found["uptime_seconds"] = round(time.time() - self._began, 1)
        found["workers"] = [
            {
                "worker": each.number,
                "pid": None if each.process is None else each.process.pid,
                "serves": each.serves,
                "sessions": sessions.get(each.number, 0),
                "restarts": each.restarts,
            }
            for each in self._crew.workers
        ]
        return ControlAnswer(True, problems=problems, data=found)

    async def _sessions(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        found, problems = await self.inquiries.all("sessions", arguments)
        pages = [
            {**each, "sessions": [{**one, "worker": number} for one in each["sessions"]]}
            for number, each in found
        ]
        return self._page(
            "sessions",
            pages,
            problems,
            lambda each: place_of(each["session"]),
            lambda same: same[0],
        )

    async def _exports(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        config, _table = self._state()
        names = [name for export in config.exports if (name := export.exact_name) is not None]
        configured = {name: number for number, name in enumerate(names)}

        def place(each: Mapping[str, Any]) -> tuple[int, str]:  # as in each worker
            return configured.get(each["export"], len(names)), each["export"]

        found, problems = await self.inquiries.all("exports", arguments)
        pages = [each for _number, each in found]
        return self._page("exports", pages, problems, place, merged.export)

    def _page(
        self,
        key: str,
        pages: Sequence[Mapping[str, Any]],
        problems: tuple[str, ...],
        place: Callable[[Mapping[str, Any]], Any],
        together: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]],
    ) -> ControlAnswer:
        """Give as much as one answer takes of what comes next in all workers."""
        if not pages:
            return ControlAnswer(False, problems=problems)
        found, more = merged.in_order(pages, key, place, together)
        page = AnswerPage()
        for each in found:
            if page.is_full:
                break
            page.add(dict(each))
        more = more or len(page.shown) < len(found)
        return ControlAnswer(True, problems=problems, data={key: page.shown, "more": more})

    async def _upstreams(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        found, problems = await self.inquiries.all("upstreams", {})
        several = [each for _number, each in found]
        data = {"upstreams": merged.by_name(several, "upstreams", ("upstream",), merged.upstream)}
        return ControlAnswer(bool(found), problems=problems, data=data)

    async def _losses(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        workers = self.inquiries.concerned(arguments)
        asked = await self.inquiries.each(workers, "losses", arguments)
        if len(asked) == 1:
            return asked[0][1]
        done = [(worker.number, each.done) for worker, each in asked if each.ok]
        problems = merged.lines([(worker.number, each.problems) for worker, each in asked])
        data = [each.data for _worker, each in asked if each.data is not None]
        return ControlAnswer(
            not problems,
            merged.lines(done),
            problems,
            data=merged.losses_of(data) if data else None,
        )

    # --- What changes something

    async def _reloaded(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)
        return await self._reload()

    async def _switch(self, _arguments: Mapping[str, Any]) -> ControlAnswer:
        return ControlAnswer(False, problems=(SWITCH,))

    async def _upgrade(self, _arguments: Mapping[str, Any]) -> ControlAnswer:
        return ControlAnswer(False, problems=(UPGRADE,))

    async def _disconnect(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        run = str(arguments.get("session", "")).rpartition("-")[0]
        # A client has its id from where it came in, and its session may be elsewhere.
        workers = sorted(self._crew.workers, key=lambda each: each.run != run)
        asked = await self.inquiries.each(workers, "disconnect", arguments)
        done = next((each for _worker, each in asked if each.ok), None)
        return asked[0][1] if done is None else done

    async def _drain(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        if arguments.get("end") is True:
            return self._ended(arguments)
        return await self.orders.drain(arguments)

    def _ended(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """End all; the gateway ends with them."""
        if arguments.keys() - {"end", "deadline"}:
            raise Misunderstood('"end" goes with "deadline", and nothing else')
        if not self._end(deadline_in(arguments)):
            return ControlAnswer(False, problems=("all sessions have been told to end",))
        return ControlAnswer(True, ("no more clients are taken, in any worker",))

    # --- Traces

    async def _trace(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        workers = [each for each in self.inquiries.concerned(arguments) if each.serves]
        held: list[tuple[trio.SocketStream, bytearray]] = []
        done: list[tuple[int, Sequence[str]]] = []
        data: Mapping[str, Any] | None = None

        async def close() -> None:
            for stream, _more in held:
                await trio.aclose_forcefully(stream)

        for worker in workers:
            more = bytearray()
            try:
                answer, stream = await self.inquiries.held(worker, "trace", arguments, more)
            except NotThere as error:
                answer = ControlAnswer(False, problems=(str(error),))
            else:
                held.append((stream, more))
            if not answer.ok:
                await close()
                return answer
            done.append((worker.number, answer.done))
            data = answer.data

        async def tell(send: Callable[[bytes], Awaitable[None]]) -> None:
            async with trio.open_nursery() as nursery:
                for stream, more in held:
                    nursery.start_soon(_pass_on, stream, more, send)

        return ControlAnswer(
            True, merged.lines(done), data=data, undo=close, while_connected=True, then=tell
        )


async def _pass_on(
    stream: trio.SocketStream, more: bytearray, send: Callable[[bytes], Awaitable[None]]
) -> None:
    """Pass whole lines on, until the worker says no more."""
    left = bytes(more)
    with suppress(trio.BrokenResourceError):
        while True:
            whole, newline, left = left.rpartition(b"\n")
            if newline:
                await send(whole + newline)
            data = await stream.receive_some(64 * KIB)
            if not data:
                return
            left += data
