"""Commands that go through hooks of policies: a task for each, between the data plane and the chain.

The data plane starts no task for a command, and waits for none. A command for which some policy has a hook is a
job there that waits for what happens here. A task takes the command through the chain (`Compiled.do`). The
chain's last stage hands it back to the data plane as another job. When the chain has a result, the first job
ends with it.

If a hook fails with anything but `Failed`, that is a bug of its policy: the command gets EIO, and the log gets
the traceback. Tasks end with the session, whatever they wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from gateway.access.chain import Compiled
from gateway.jobs.extents import mended_extents
from gateway.jobs.jobs import Jobs, Running
from gateway.jobs.steps import Answer, Job, Outside
from gateway.jobs.translate import status, translate
from gateway.policy import Failed, Request, Result
from gateway.protocol.commands import normal_error
from gateway.scan.plan import Plan
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.extents import Extents

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

Act = Callable[[Callable[[], None]], None]
"""Runs something in the data plane, between two of its own steps."""


class Hooks:
    """The hooks of one session. `act` is the session's; tasks run in `nursery`."""

    def __init__(
        self,
        compiled: Compiled,
        plan: Plan,
        jobs: Jobs,
        act: Act,
        nursery: trio.Nursery,
        log: FilteringBoundLogger,
    ) -> None:
        self._compiled = compiled
        self._plan = plan
        self._jobs = jobs
        self._act = act
        self._nursery = nursery
        self._log = log
        self._ids = {context.name: context.id for context in plan.offer.contexts}
        jobs.outside = self._begin

    def _begin(self, running: Running, outside: Outside) -> None:
        self._nursery.start_soon(self._do, running, outside)

    async def _do(self, running: Running, outside: Outside) -> None:
        answer = await self._answer(outside)
        self._act(lambda: self._jobs.answer(running, answer))

    async def _answer(self, outside: Outside) -> Answer:
        wanted = {ours for ours, _theirs in outside.contexts}
        request = Request(
            outside.command,
            outside.offset,
            outside.length,
            outside.flags,
            outside.data,
            tuple(name for name, number in self._ids.items() if number in wanted),
        )
        try:
            result = await self._compiled.do(request, self._upstream)
            return self._as_answer(request, result)
        except Failed as failed:
            at = failed.offset
            inside = at is not None and request.offset <= at < request.end
            return Answer(failed.error, failed.text, at if inside else None)
        except (Exception, SystemExit):
            self._log.exception(
                "a policy failed",
                command=request.command.name,
                policies=self._plan.hooked[request.command],
            )
            return Answer(Errno.EIO, "a policy of the gateway failed")

    def _as_answer(self, request: Request, result: Result) -> Answer:
        match request.command:
            case Cmd.READ:
                if not isinstance(result, bytes | bytearray | memoryview):
                    raise TypeError(f"a READ gave {type(result).__name__} instead of its data")
                if len(result) != request.length:
                    raise ValueError(f"a READ of {request.length} bytes gave {len(result)}")
                return Answer(data=[(request.offset, result)])
            case Cmd.BLOCK_STATUS:
                if not isinstance(result, Mapping) or set(result) != set(request.contexts):
                    raise ValueError(f"a BLOCK_STATUS of {request.contexts} gave {result!r}")
                return Answer(status=[self._mended(request, *each) for each in result.items()])
            case _:
                return Answer()

    def _mended(
        self, request: Request, name: str, extents: Sequence[tuple[int, int]]
    ) -> tuple[int, Extents]:
        reach = self._plan.offer.size - request.offset
        one = request.has(CmdFlag.REQ_ONE)
        mended = mended_extents(Extents.of(extents), request.length, reach, one=one)
        if not mended:
            raise ValueError(f"a BLOCK_STATUS gave no extent that is not empty for {name}")
        return self._ids[name], mended

    async def _upstream(self, request: Request) -> Result:
        """Do a request that has come through all policies, in the upstream's offsets. Raises `Failed`."""
        if not request.length and request.command is not Cmd.FLUSH:
            return b"" if request.command is Cmd.READ else None
        if request.end > self._plan.upstream.size:
            # What a stage shows is held against its requests by the stage before it; the last one by nobody.
            there = self._plan.upstream.size
            raise ValueError(f"a policy asks for bytes up to {request.end}, and there are {there}")
        ended = trio.Event()
        answers: list[Answer] = []

        def done(answer: Answer) -> None:
            answers.append(answer)
            ended.set()

        self._act(lambda: self._jobs.ask(self._job(request), done))
        await ended.wait()
        [answer] = answers
        if answer.error:
            # Where it went wrong is told in the server's offsets, which are not those of the policies before.
            # Whether ENOTSUP is an answer depends on the flags.
            word = request.flags << 16 | request.command
            raise Failed(normal_error(word, answer.error), answer.text)
        if request.command is Cmd.READ:
            return b"".join(data for _offset, data in answer.data)
        if request.command is Cmd.BLOCK_STATUS:
            names = {number: name for name, number in self._ids.items()}
            return {names[number]: extents for number, extents in answer.status}
        return None

    def _job(self, request: Request) -> Job:
        upstream = self._plan.upstream
        if request.command is not Cmd.BLOCK_STATUS:
            return translate(
                upstream,
                request.command,
                request.flags,
                request.offset,
                request.length,
                request.data,
            )
        theirs = {ours: link for link, ours in self._plan.context_ids.items() if ours is not None}
        numbers = [self._ids[name] for name in request.contexts]
        wanted = tuple((number, theirs.get(number)) for number in numbers)
        # Extents may reach behind what was asked for; how far the client sees is for the chain to say.
        reach = upstream.size - request.offset
        return status(upstream, request.flags, request.offset, request.length, wanted, reach)
