"""The workers, as the supervisor has them: started, told what to serve, and started again when they die.

A worker that dies costs the sessions that it had: those of the disks whose home it was, and those whose TLS it
had. What was on its way to it is refused where it came from. Another one is started in its place, with the same
number, and so with the same homes, and with the configuration in force. What was not flushed of its sessions is
as after the end of a gateway: their clients' connections are cut, so none of them was told that it is safe.

Before a worker is started in the place of another one, that one has been reaped: the kernel has closed all its
connections, so no two processes are the home of one disk.

One that dies soon after it was started is started again only after a while, longer each time
(`AGAIN_SECONDS`). Clients for it wait meanwhile, but not for long (`passing`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from gateway.handover.channel import Channel, pair
from gateway.handover.message import NO_ROOM, ChannelMessage
from gateway.workers.lender import Lender
from gateway.workers.passing import Passing, refuse
from gateway.workers.worker import Worker

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

AGAIN_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0)
"""How long to wait before a worker is started again that died within `SOON_SECONDS`, by how often it did."""

SOON_SECONDS = 10.0
"""One that has served for longer than this had another reason to die than how it was started."""

END_SECONDS = 1.0
"""How long a worker may take to be gone after it has closed its channel."""

MOST_ATTEMPTS = 3
"""How often a worker is begun at the start of the gateway that ends without a word."""

START_SECONDS = 60.0
"""How long a worker may take until it is ready: as long as everything else that has to be there at a start."""


class Crew:
    """All workers. `brief` gives what a new one is told first, `begun` prepares one before it serves, `gone` is
    told of one that has ended.
    """

    def __init__(
        self,
        workers: int,
        log: FilteringBoundLogger,
        brief: Callable[[Worker], Iterable[ChannelMessage]],
        begun: Callable[[Worker], Any],
        gone: Callable[[Worker], None],
    ) -> None:
        self.workers = [Worker(number) for number in range(workers)]
        self.log = log
        self.lender = Lender(lambda number, message: self.workers[number].say(message))
        self.turn = trio.Lock()
        """Who starts a worker has it, and who reloads: none is started with half of a reload."""
        self.ends = False
        """No worker is started any more."""
        self.passing = Passing(lambda: self.ends)
        self._brief, self._begun, self._gone = brief, begun, gone
        self.failed: list[str] = []
        """Why there is nothing to serve: what the first workers have said."""

    async def keep(self, worker: Worker) -> None:
        """Have a worker there until `ends`."""
        soon = 0
        while not self.ends:
            began = trio.current_time()
            # No reload comes before the first ones are there.
            await self._live(worker, self.turn if worker.restarts else nullcontext())
            if self.ends:
                return
            worker.restarts += 1
            soon = soon + 1 if trio.current_time() - began < SOON_SECONDS else 0
            wait = AGAIN_SECONDS[min(soon, len(AGAIN_SECONDS) - 1)]
            self.log.info("worker is started again", worker=worker.number, seconds=wait)
            await trio.sleep(wait)

    def signal(self, number: signal.Signals) -> None:
        """Send all a signal."""
        for worker in self.workers:
            if worker.process is not None and worker.process.returncode is None:
                worker.process.send_signal(number)

    async def all_gone(self) -> None:
        """Wait until all have ended."""
        for worker in self.workers:
            while worker.process is not None:
                await worker.gone.wait()

    async def ended(self, seconds: float) -> None:
        """Wait until all have ended; those that take longer than so long are killed."""
        with trio.move_on_after(seconds) as limit:
            await self.all_gone()
        if limit.cancelled_caught:
            left = [each.number for each in self.workers if each.process is not None]
            self.log.warning("workers take too long to end, and are killed", workers=left)
        await self.kill()

    async def kill(self) -> None:
        """End all that there are at once."""
        self.ends = True
        for worker in self.workers:
            if worker.process is not None:
                worker.kill()
                await worker.process.wait()

    async def _live(self, worker: Worker, turn: AbstractAsyncContextManager[object]) -> None:
        """Start a worker, and stay with it until it has ended and is reaped."""
        async with trio.open_nursery() as nursery:
            ended = trio.Event()
            async with turn:
                if self.ends:
                    return
                try:
                    channel = await self._start(worker)
                except OSError as error:
                    self._cannot_serve(worker, f"it cannot be started: {error}", final=True)
                    return
                nursery.start_soon(self._hear, worker, channel, ended)
                await self._made_ready(worker, ended)
            await ended.wait()
            process = worker.process
            assert process is not None
            # It says nothing any more. One that ends in good order has closed the channel last of all; any
            # other is no worker, whatever it does still.
            with trio.move_on_after(END_SECONDS):
                await process.wait()
            worker.kill()
            await process.wait()
            nursery.cancel_scope.cancel()
        self._has_ended(worker, process)

    async def _start(self, worker: Worker) -> Channel:
        ours, theirs = pair()
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    _command(theirs.fileno(), worker.number), pass_fds=[theirs.fileno()]
                )
        except BaseException:
            ours.close()
            raise
        channel = Channel(ours)
        try:
            for message in self._brief(worker):
                channel.say(message)
        except OSError:  # a descriptor too many
            channel.close()
            process.kill()
            await process.wait()
            raise
        worker.process, worker.channel = process, channel
        worker.prepared, worker.problems = trio.Event(), []
        worker.reloaded = trio.Event()
        worker.run = ""
        return channel

    async def _made_ready(self, worker: Worker, ended: trio.Event) -> None:
        """Wait until a worker is ready, and have it begin."""
        with trio.move_on_after(START_SECONDS) as limit:
            async with trio.open_nursery() as first:

                async def wait(event: trio.Event) -> None:
                    await event.wait()
                    first.cancel_scope.cancel()

                first.start_soon(wait, worker.prepared)
                first.start_soon(wait, ended)
        why = "; ".join(worker.problems)
        # What it says itself would be said again; anything else may have been done to it.
        final = bool(why) or worker.attempts >= MOST_ATTEMPTS
        if limit.cancelled_caught:
            why = f"it was not ready within {START_SECONDS:g} s"
        elif not worker.prepared.is_set():
            why = "it has ended before it was ready"
        if why:
            self._cannot_serve(worker, why, final=final)
            return
        worker.attempts = 0
        worker.first.set()
        await self._begun(worker)
        worker.say(ChannelMessage("begin"))
        worker.serves = True
        self.passing.has_begun(worker)

    def _cannot_serve(self, worker: Worker, why: str, *, final: bool) -> None:
        worker.attempts += 1
        if final:
            self.failed.append(why)
            worker.first.set()
        self.log.error("worker cannot serve", worker=worker.number, why=why)
        worker.kill()

    async def _hear(self, worker: Worker, channel: Channel, ended: trio.Event) -> None:
        try:
            await channel.run(partial(self._heard, worker), partial(self._lost, worker))
        finally:
            ended.set()

    def _has_ended(self, worker: Worker, process: trio.Process) -> None:
        served, worker.serves = worker.serves, False
        assert worker.channel is not None
        worker.channel.close()
        worker.channel = worker.process = None
        worker.run = ""
        worker.prepared.set()
        worker.reloaded.set()
        worker.gone.set()
        worker.gone = trio.Event()
        self.passing.has_ended(worker)
        if served and not self.ends:
            self.log.error("worker has died", worker=worker.number, status=process.returncode)
        self.lender.forget(worker.number)
        self._gone(worker)

    # --- What workers say

    def _heard(self, worker: Worker, message: ChannelMessage) -> None:
        match message.kind:
            case "prepared":
                worker.run = message["run"]
                worker.problems = [str(each) for each in message["problems"]]
                worker.prepared.set()
            case "goes":
                self.passing.goes(worker, self._at(message), message)
            case "taken" | "refused":
                self.passing.answered(message)
            case "wants":
                self.ask(self._at(message), message.descriptors)
            case "reloaded":
                worker.done = [str(each) for each in message["done"]]
                worker.problems = [str(each) for each in message["problems"]]
                worker.reloaded.set()
            case _ if not self.lender.heard(worker.number, message):
                for descriptor in message.descriptors:
                    os.close(descriptor)

    def _lost(self, worker: Worker, message: ChannelMessage) -> None:
        """Go on without what could not be taken here; of a question whoever asks sees the end."""
        if message.kind == "goes":
            why = f"the supervisor cannot hand it over: {NO_ROOM}"
            refuse(worker, message["client"]["number"], why)

    def _at(self, message: ChannelMessage) -> Worker:
        number: int = message["to"]
        return self.workers[number % len(self.workers)]

    def ask(self, worker: Worker, descriptors: tuple[int, ...]) -> bool:
        """Give a worker a connection over which it is asked something; say whether it is there."""
        if not worker.serves:
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        return worker.say(ChannelMessage("asks", descriptors=descriptors))


def _command(descriptor: int, number: int) -> list[str]:
    """Give what starts a worker: this Python, and this gateway, wherever it was loaded from."""
    from_here = Path(__file__).resolve().parents[2] == Path.cwd().resolve()
    safe = [] if from_here else ["-P"]
    return [sys.executable, *safe, "-m", "gateway.app.worker", str(descriptor), str(number)]
