"""How the supervisor asks its workers: over a connection for each question, in the same words as over the
control socket (`gateway.admin.control`), and in the name of who has asked.

A worker that is not there, or says nothing, keeps nobody waiting for what the others say.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import trio

from gateway.admin.asking import answer_of
from gateway.admin.control import ControlAnswer, Misunderstood, who_asks
from gateway.config import Config
from gateway.config.exports import exact_name
from gateway.handover.message import ChannelMessage
from gateway.workers import merged
from gateway.workers.crew import Crew
from gateway.workers.homes import Table, home_of
from gateway.workers.worker import Worker

QUESTION_SECONDS = 10.0
"""How long a worker may take to say what it knows, which takes no waiting. One that is stuck, or was stopped,
must not keep from an operator what the others say."""

WorkersAnswer = tuple[Worker, ControlAnswer]

State = Callable[[], tuple[Config, Table]]
"""Gives the configuration in force, and its table of homes."""


class NotThere(Exception):
    """A worker cannot be asked now."""


class Inquiries:
    """Asks the workers of a crew. `state` gives where disks have their homes."""

    def __init__(self, crew: Crew, state: State) -> None:
        self._crew = crew
        self._state = state

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

    async def each(
        self,
        workers: Sequence[Worker],
        verb: str,
        arguments: Mapping[str, Any],
        ask: Callable[[Worker, str, Mapping[str, Any]], Awaitable[ControlAnswer]] | None = None,
    ) -> list[WorkersAnswer]:
        """Ask several at once, by `ask` or without a bound; one that is not there has a problem. Raises
        `Misunderstood`.
        """
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
        refuse_if_misunderstood(found.values())
        return [(worker, found[worker.number]) for worker in workers]

    async def all(
        self, verb: str, arguments: Mapping[str, Any]
    ) -> tuple[list[tuple[int, Mapping[str, Any]]], tuple[str, ...]]:
        """Ask all a question: give the data of those that answer, and what was in the way of the others. Raises
        `Misunderstood`.
        """
        asked = await self.each(self._crew.workers, verb, arguments, self.question)
        data = [(worker.number, each.data) for worker, each in asked if each.data is not None]
        problems = [(worker.number, each.problems) for worker, each in asked if each.data is None]
        return data, merged.lines(problems)

    def concerned(self, arguments: Mapping[str, Any]) -> list[Worker]:
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


def refuse_if_misunderstood(answers: Iterable[ControlAnswer]) -> None:
    """Say of the whole what one says: it was asked as all were, so none of them has done anything. Raises
    `Misunderstood`.
    """
    for each in answers:
        if each.misunderstood:
            raise Misunderstood("; ".join(each.problems))


def _silent(worker: Worker) -> NotThere:
    return NotThere(
        f"worker {worker.number} does not answer: nothing came from it for {QUESTION_SECONDS:g} s"
    )
