"""What an operator has set for the gateway as a whole, and workers that are started later have as well.

`drain`, `disable` and `pause` are remembered here, so that a worker that is started in the place of one that
has died has them before it serves anybody. A pause is there in all workers that it concerns, or in none. One
that lasts as long as somebody is connected ends if a worker dies that had it, and its connection is closed, so
that he knows.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import trio

from gateway.admin.control import ControlAnswer, Verb
from gateway.sessions.pausing import LASTS_SECONDS
from gateway.workers import merged
from gateway.workers.asking import Inquiries, NotThere, refuse_if_misunderstood
from gateway.workers.crew import Crew
from gateway.workers.worker import Worker


class Orders:
    """Has them done by all that they concern, and by those that come later."""

    def __init__(self, crew: Crew, inquiries: Inquiries) -> None:
        self._crew = crew
        self._inquiries = inquiries
        self._disabled: set[str] = set()
        self._drained: list[Mapping[str, Any]] = []
        """What was asked with `drain` and `undrain`, in order; the last without a listener stands for all."""
        self._paused: dict[str, float] = {}
        """Exports that are paused -> until when, by `trio.current_time`."""

    def verbs(self) -> dict[str, Verb]:
        """Give the verbs, by their names."""
        return {
            "pause": self._pause,
            "resume": self._resume,
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
                answer = await self._inquiries.ask(worker, verb, arguments)
                why = "; ".join(answer.problems) if not answer.ok else ""
            except NotThere as error:
                why = str(error)
            if why:
                self._crew.log.error(
                    "worker is not as the others", worker=worker.number, verb=verb, why=why
                )

    async def _done_by_all(
        self, verb: str, arguments: Mapping[str, Any], remember: Callable[[], object]
    ) -> ControlAnswer:
        """Have all do something that each can do by itself; what one lacks is told."""
        asked = await self._inquiries.each(self._crew.workers, verb, arguments)
        done = merged.lines([(worker.number, each.done) for worker, each in asked if each.ok])
        problems = merged.lines([(w.number, each.problems) for w, each in asked if not each.ok])
        if done:  # one that is not there now gets it when it begins
            remember()
        return ControlAnswer(bool(done), done, problems)

    async def drain(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        """Have listeners take no more clients."""
        return await self._drained_or_not("drain", arguments)

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
        workers = self._inquiries.concerned(arguments)
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
                        answer, stream = await self._inquiries.held(worker, "pause", said)
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
            refuse_if_misunderstood(answer for _worker, answer, _stream in asked)
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
                    await self._inquiries.ask(worker, "resume", {**meant, "holder": said["holder"]})

    async def _resume(self, arguments: Mapping[str, Any]) -> ControlAnswer:
        workers = self._inquiries.concerned(arguments)
        asked = await self._inquiries.each(workers, "resume", arguments)
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
        data, _problems = await self._inquiries.all("status", {})
        lasts = arguments.get("for", LASTS_SECONDS)
        now = trio.current_time()
        there = {name for _number, each in data for name in each["paused"]}
        there |= self.paused_where_nobody_says(data, now)
        self._paused = {name: self._paused.get(name, now + float(lasts)) for name in there}

    def paused_where_nobody_says(
        self, data: Sequence[tuple[int, Mapping[str, Any]]], now: float
    ) -> set[str]:
        """Give what is noted as paused in workers that are not among these, which have answered."""
        answered = {number for number, _each in data}
        silent = {each.number for each in self._crew.workers} - answered
        noted = [name for name, until in self._paused.items() if silent and until > now]
        return {
            name
            for name in noted
            if any(each.number in silent for each in self._inquiries.concerned({"export": name}))
        }


async def _any_ends(streams: Sequence[trio.SocketStream]) -> None:
    """Wait until a worker has closed one of these."""
    async with trio.open_nursery() as nursery:

        async def wait(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                await stream.receive_some(1)
            nursery.cancel_scope.cancel()

        for stream in streams:
            nursery.start_soon(wait, stream)
