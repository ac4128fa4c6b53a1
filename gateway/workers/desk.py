"""What is asked of the gateway as a whole, answered by the supervisor for all workers.

A verb goes to the workers that it concerns, over a connection for each, in the same words as over the control
socket (`gateway.admin.control`), and in the name of who has asked. What they answer is put together
(`gateway.workers.merged`).

- What is about one export goes to the home of its disk. If that has none, and for patterns, it goes to all. A
  pause is there in all of them or in none.
- What an operator has set (`drain`, `disable`, `pause`) is remembered here, so that a worker that is started in
  the place of one that has died has it, too, before it serves anybody. A pause that lasts as long as somebody
  is connected ends if a worker dies that had it, and its connection is closed, so that he knows.
- `switch` is refused: it would lead the clients of one disk to another one, whose home is elsewhere.

This is longer than other modules: each verb is short, and all do the same with what workers answer.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import trio

from gateway.admin.asking import answer_of
from gateway.admin.control import ControlAnswer, Misunderstood, Verb, no_arguments, who_asks
from gateway.config import Config
from gateway.config.exports import exact_name
from gateway.handover.message import ChannelMessage
from gateway.sessions.pausing import LASTS_SECONDS
from gateway.status.pages import AnswerPage
from gateway.status.verbs import place_of
from gateway.status.waits import iso_time
from gateway.wire.limits import KIB
from gateway.workers import merged
from gateway.workers.crew import Crew, Worker
from gateway.workers.homes import Table, home_of
from gateway.workers.past import Past

SWITCH = (
    "with several workers no export is switched yet: its clients would stay in the worker that is the home of"
    " the disk that they leave, and the other disk's home may be another one: write workers = 1"
)

UPGRADE = "a gateway with several workers is not upgraded while it runs yet: it takes a restart"

QUESTION_SECONDS = 10.0
"""How long a worker may take to say what it knows, which takes no waiting. One that is stuck, or was stopped,
must not keep from an operator what the others say."""

Asked = tuple[Worker, ControlAnswer]


class NotThere(Exception):
    """A worker cannot be asked now."""


class Desk:
    """Answers for all. `state` gives the configuration in force, and its table of homes; `end` has all end, and
    their sessions go on for so many seconds (None: as the configuration says), and says whether that is news;
    `began` is a time of `time.time`.
    """

    def __init__(
        self,
        crew: Crew,
        state: Callable[[], tuple[Config, Table]],
        reload: Callable[[], Awaitable[ControlAnswer]],
        end: Callable[[float | None], bool],
        began: float,
    ) -> None:
        self._crew = crew
        self._state = state
        self._reload = reload
        self._end = end
        self._began = began
        self._disabled: set[str] = set()
        self._drained: list[Mapping[str, Any]] = []
        """What was asked with `drain` and `undrain`, in order; the last without a listener stands for all."""
        self.past = Past()
        """What workers have done that have died."""
        self._paused: dict[str, float] = {}
        """Exports that are paused -> until when, by `trio.current_time`."""

    def verbs(self) -> dict[str, Verb]:
        """Give the verbs, by their names."""
        return {
            "reload": self._reloaded,
            "trace": self._trace,
            "pause": self._pause,
            "resume": self._resume,
            "switch": self._switch,
            "upgrade": self._upgrade,
            "losses": self._losses,
            "status": self._status,
            "sessions": self._sessions,
            "exports": self._exports,
            "upstreams": self._upstreams,
            "disconnect": self._disconnect,
            "drain": self._drain,
            "undrain": self._drain_no_more,
            "disable": self._disable,
            "enable": self._enable,
        }

    async def prepare(self, worker: Worker) -> None:
        """Have a worker that was started anew be as the others, before it serves."""
        asked: list[tuple[str, Mapping[str, Any]]] = [
            *((str(each["verb"]), each["arguments"]) for each in self._drained),
            *(("disable", {"upstream": name}) for name in sorted(self._disabled)),
        ]
        now = trio.current_time()
        for name, until in self._paused.items():
            if until > now:
                asked.append(("pause", {"export": name, "for": max(1.0, until - now)}))
        for verb, arguments in asked:
            try:
                answer = await self.ask(worker, verb, arguments)
                why = "; ".join(answer.problems) if not answer.ok else ""
            except NotThere as error:
                why = str(error)
            if why:
                self._crew.log.error(
                    "worker is not as the others", worker=worker.number, verb=verb, why=why
                )

    # --- Asking

    @property
    def workers(self) -> Sequence[Worker]:
        """All that there are."""
        return self._crew.workers

    async def of_each(
        self, ask: Callable[[Worker], Awaitable[Any]]
    ) -> tuple[dict[int, Any], tuple[str, ...]]:
        """Ask all at once, and give what each says that is there from the question until all have answered; and
        why others have said nothing. Of those the past has what they said before. `ask` raises `NotThere`.
        """
        found: dict[int, Any] = {}
        whys: dict[int, str] = {}
        runs = {each.number: each.run for each in self._crew.workers if each.serves}

        async def one(worker: Worker) -> None:
            try:
                with trio.fail_after(QUESTION_SECONDS):
                    found[worker.number] = await ask(worker)
            except trio.TooSlowError:
                whys[worker.number] = str(_silent(worker))
            except NotThere as error:
                whys[worker.number] = str(error)

        async with trio.open_nursery() as nursery:
            for worker in self._crew.workers:
                if worker.number in runs:
                    nursery.start_soon(one, worker)
        for worker in self._crew.workers:
            if worker.run != runs.get(worker.number):
                found.pop(worker.number, None)
                whys[worker.number] = f"worker {worker.number} is not there: it is being started"
        return dict(sorted(found.items())), tuple(why for _number, why in sorted(whys.items()))

    async def _open(self, worker: Worker) -> trio.SocketStream:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        if not worker.say(ChannelMessage("asks", descriptors=(theirs.detach(),))):
            ours.close()
            raise NotThere(f"worker {worker.number} is not there")
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def held(
        self,
        worker: Worker,
        verb: str,
        arguments: Mapping[str, Any],
        more: bytearray | None = None,
    ) -> tuple[ControlAnswer, trio.SocketStream]:
        """Ask, and give the connection as well, which stays open. Raises `NotThere`."""
        stream = await self._open(worker)
        try:
            said = {"asked-by": who_asks(), **arguments}
            return await answer_of(stream, verb, said, more), stream
        except (trio.BrokenResourceError, Misunderstood):
            await trio.aclose_forcefully(stream)
            raise NotThere(f"worker {worker.number} has ended without an answer") from None
        except BaseException:  # who has asked is gone: what is under way there is undone
            await trio.aclose_forcefully(stream)
            raise

    async def ask(self, worker: Worker, verb: str, arguments: Mapping[str, Any]) -> ControlAnswer:
        """Ask one worker. Raises `NotThere`."""
        answer, stream = await self.held(worker, verb, arguments)
        await stream.aclose()
        return answer

    async def question(
        self, worker: Worker, verb: str, arguments: Mapping[str, Any]
    ) -> ControlAnswer:
        """Ask what is answered at once. Raises `NotThere`, also where nothing comes for `QUESTION_SECONDS`."""
        try:
            with trio.fail_after(QUESTION_SECONDS):
                return await self.ask(worker, verb, arguments)
        except trio.TooSlowError:
            raise _silent(worker) from None

    async def _each(
        self,
        workers: Sequence[Worker],
        verb: str,
        arguments: Mapping[str, Any],
        ask: Callable[[Worker, str, Mapping[str, Any]], Awaitable[ControlAnswer]] | None = None,
    ) -> list[Asked]:
        """Ask several at once, by `ask` or without a bound; one that is not there has a problem."""
        found: dict[int, ControlAnswer] = {}
        ask = self.ask if ask is None else ask

        async def one(worker: Worker) -> None:
            try:
                if not worker.serves:
                    raise NotThere(f"worker {worker.number} is not there: it is being started")
                found[worker.number] = await ask(worker, verb, arguments)
            except NotThere as error:
                found[worker.number] = ControlAnswer(False, problems=(str(error),))

        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(one, worker)
        return [(worker, found[worker.number]) for worker in workers]

    async def _all(
        self, verb: str, arguments: Mapping[str, Any]
    ) -> tuple[list[tuple[int, Mapping[str, Any]]], tuple[str, ...]]:
        """Ask all a question: give the data of those that answer, and what was in the way of the others."""
        asked = await self._each(self._crew.workers, verb, arguments, self.question)
        data = [(worker.number, each.data) for worker, each in asked if each.data is not None]
        problems = [(worker.number, each.problems) for worker, each in asked if each.data is None]
        return data, merged.lines(problems)

    # --- Questions

    async def _status(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        no_arguments(arguments)

        async def of_one(worker: Worker) -> Mapping[str, Any]:
            answer = await self.ask(worker, "status", {})
            if answer.data is None:
                raise NotThere("; ".join(answer.problems))
            return answer.data

        said, problems = await self.of_each(of_one)
        if not said:
            return ControlAnswer(False, problems=problems)
        data = [*said.items()]
        sessions = {number: each["sessions"] for number, each in data}
        found = self.past.status(said)
        noted = self._paused_where_nobody_says(data, trio.current_time())
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
        found, problems = await self._all("sessions", arguments)
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

        found, problems = await self._all("exports", arguments)
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
        found, problems = await self._all("upstreams", {})
        several = [each for _number, each in found]
        data = {"upstreams": merged.by_name(several, "upstreams", ("upstream",), merged.upstream)}
        return ControlAnswer(bool(found), problems=problems, data=data)

    async def _losses(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        workers = self._concerned(arguments)
        asked = await self._each(workers, "losses", arguments)
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
        asked = await self._each(workers, "disconnect", arguments)
        done = next((each for _worker, each in asked if each.ok), None)
        return asked[0][1] if done is None else done

    async def _done_by_all(
        self, verb: str, arguments: Mapping[str, Any], remember: Callable[[], object]
    ) -> ControlAnswer:
        """Have all do something that each can do by itself; what one lacks is told."""
        asked = await self._each(self._crew.workers, verb, arguments)
        done = merged.lines([(worker.number, each.done) for worker, each in asked if each.ok])
        problems = merged.lines([(w.number, each.problems) for w, each in asked if not each.ok])
        if done:  # one that is not there now gets it when it begins
            remember()
        return ControlAnswer(bool(done), done, problems)

    async def _drain(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        if arguments.get("end") is True:
            return self._ended(arguments)
        return await self._drained_or_not("drain", arguments)

    def _ended(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """End all; the gateway ends with them."""
        seconds = arguments.get("deadline")
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if arguments.keys() - {"end", "deadline"} or not (seconds is None or number):
            raise Misunderstood('"end" goes with "deadline", a number of seconds, and nothing else')
        if not self._end(seconds):
            return ControlAnswer(False, problems=("all sessions have been told to end",))
        return ControlAnswer(True, ("no more clients are taken, in any worker",))

    async def _drain_no_more(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        return await self._drained_or_not("undrain", arguments)

    async def _drained_or_not(self, verb: str, arguments: Mapping[str, Any]) -> ControlAnswer:
        def remember() -> None:
            listener = arguments.get("listener")
            left = [
                each
                for each in self._drained
                if listener is not None and each["arguments"].get("listener") != listener
            ]
            self._drained = [*left, {"verb": verb, "arguments": dict(arguments)}]

        return await self._done_by_all(verb, arguments, remember)

    async def _disable(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        name = str(arguments.get("upstream"))
        return await self._done_by_all("disable", arguments, lambda: self._disabled.add(name))

    async def _enable(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        name = str(arguments.get("upstream"))
        return await self._done_by_all("enable", arguments, lambda: self._disabled.discard(name))

    # --- Pauses

    async def _pause(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        workers = self._concerned(arguments)
        said = {"holder": f"supervisor-{secrets.token_hex(4)}", **arguments}
        asked: list[tuple[Worker, ControlAnswer, trio.SocketStream]] = []
        problem = ""
        try:
            async with trio.open_nursery() as nursery:

                async def one(worker: Worker) -> None:
                    nonlocal problem
                    try:
                        if not worker.serves:
                            raise NotThere(f"worker {worker.number} is not there")
                        answer, stream = await self.held(worker, "pause", said)
                        asked.append((worker, answer, stream))
                    except NotThere as error:
                        problem = str(error)

                for worker in workers:
                    nursery.start_soon(one, worker)
        except BaseException:  # who has asked is gone
            with trio.CancelScope(shield=True):
                await self._unpause(asked, said)
            raise
        problems = merged.lines([(w.number, each.problems) for w, each, _s in asked if not each.ok])
        if problem or problems:
            await self._unpause(asked, said)
            return ControlAnswer(False, problems=(*problems, *([problem] if problem else [])))
        done = merged.lines([(w.number, each.done) for w, each, _stream in asked])
        streams = [stream for _worker, _answer, stream in asked]

        async def close() -> None:
            for stream in streams:
                await trio.aclose_forcefully(stream)

        if arguments.get("while-connected") is True:
            return ControlAnswer(
                True, done, undo=close, while_connected=True, then=lambda _send: _any_ends(streams)
            )
        await close()
        await self._remember_pauses(arguments)

        async def undo() -> None:
            await self._unpause(asked, said)
            await self._remember_pauses(arguments)

        return ControlAnswer(True, done, undo=undo)

    async def _unpause(
        self,
        asked: Sequence[tuple[Worker, ControlAnswer, trio.SocketStream]],
        said: Mapping[str, Any],
    ) -> None:
        """Take back what some have done and others have not."""
        for worker, answer, stream in asked:
            await trio.aclose_forcefully(stream)
            if answer.ok:
                meant = {key: said[key] for key in ("export", "upstream", "all") if key in said}
                with suppress(NotThere):
                    await self.ask(worker, "resume", {**meant, "holder": said["holder"]})

    async def _resume(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        workers = self._concerned(arguments)
        asked = await self._each(workers, "resume", arguments)
        await self._remember_pauses(arguments)
        done = merged.lines([(worker.number, each.done) for worker, each in asked if each.ok])
        if done:
            return ControlAnswer(True, done)
        return ControlAnswer(
            False, problems=merged.lines([(w.number, each.problems) for w, each in asked])
        )

    async def _remember_pauses(self, arguments: Mapping[str, Any]) -> None:
        """Note which exports are paused now: those that were not before are for as long as was asked. What is
        paused in a worker that cannot say so now, for it is being started, is what was noted before.
        """
        data, _problems = await self._all("status", {})
        lasts = arguments.get("for", LASTS_SECONDS)
        now = trio.current_time()
        there = {name for _number, each in data for name in each["paused"]}
        there |= self._paused_where_nobody_says(data, now)
        self._paused = {name: self._paused.get(name, now + float(lasts)) for name in there}

    def _paused_where_nobody_says(
        self, data: Sequence[tuple[int, Mapping[str, Any]]], now: float
    ) -> set[str]:
        """Give what is noted as paused in workers that are not among these, which have answered."""
        answered = {number for number, _each in data}
        silent = {each.number for each in self._crew.workers} - answered
        noted = [name for name, until in self._paused.items() if silent and until > now]
        return {
            name
            for name in noted
            if any(each.number in silent for each in self._concerned({"export": name}))
        }

    # --- Traces

    async def _trace(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        workers = [each for each in self._concerned(arguments) if each.serves]
        held: list[tuple[trio.SocketStream, bytearray]] = []
        done: list[tuple[int, Sequence[str]]] = []
        data: Mapping[str, Any] | None = None

        async def close() -> None:
            for stream, _more in held:
                await trio.aclose_forcefully(stream)

        for worker in workers:
            more = bytearray()
            try:
                answer, stream = await self.held(worker, "trace", arguments, more)
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

    # --- Who is concerned

    def _concerned(self, arguments: Mapping[str, Any]) -> list[Worker]:
        """Give the workers that a verb about exports is for: the home of the one that is named, or all."""
        config, table = self._state()
        text = arguments.get("export")
        if not isinstance(text, str):
            return self._crew.workers
        spelled_out = {export.exact_name for export in config.exports}
        name = text if text in spelled_out else exact_name(text)
        route = None if name is None else config.route(name)
        if name is None or route is None:
            return self._crew.workers
        settings = config.upstream[route.upstream]
        home = home_of(table, settings, route.upstream_name, len(self._crew.workers))
        return self._crew.workers if home is None else [self._crew.workers[home]]


def _silent(worker: Worker) -> NotThere:
    return NotThere(
        f"worker {worker.number} does not answer: nothing came from it for {QUESTION_SECONDS:g} s"
    )


async def _any_ends(streams: Sequence[trio.SocketStream]) -> None:
    """Wait until a worker has closed one of these."""
    async with trio.open_nursery() as nursery:

        async def wait(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                await stream.receive_some(1)
            nursery.cancel_scope.cancel()

        for stream in streams:
            nursery.start_soon(wait, stream)


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
