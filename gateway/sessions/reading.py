"""Policies that look at the disk before it is described, and the READs that they make: over a link, before a
client has it.

The READs go by the data plane's own machinery without a client: a job asks, the scanner of replies collects.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from gateway.access.chain import Placed, prepared
from gateway.config import Route
from gateway.jobs.jobs import Answer
from gateway.jobs.translate import translate
from gateway.links.trunk import Joined
from gateway.net.options import Awaited
from gateway.policy import Failed, Request
from gateway.protocol.commands import normal_error
from gateway.protocol.errors import Refusal
from gateway.protocol.export import offer, view_of
from gateway.scan.chunks import reply_scan
from gateway.scan.plan import Plan, plan
from gateway.scan.traffic import Traffic
from gateway.sessions.promise import first_view
from gateway.upstream.link import Link
from gateway.wire import limits
from gateway.wire.constants import Cmd, Errno, Rep
from gateway.wire.errors import WireError

MAX_BYTES = limits.MIB
"""Of one READ: partition tables are a few KiB, and this is held in memory."""

MAX_READS = 1024
"""On one link: a chain of partitions on a hostile disk must not keep us reading for ever."""


PREPARE_SECONDS = 30
"""How long policies may take to look at a disk before it is described: a few READs of a server that has just
answered."""


async def chain_over(chain: list[Placed], route: Route, link: Link | Joined) -> list[Placed]:
    """Give the chain as it stands over a link, after its policies have looked at the disk. Raises
    `Refusal`, `Denied`.
    """
    reader = JoinedReader(link) if isinstance(link, Joined) else Reader(link)
    try:
        with trio.fail_after(PREPARE_SECONDS):
            return await prepared(chain, first_view(route, link.export), reader)
    except trio.TooSlowError:
        text = f"policies have not seen the disk within {PREPARE_SECONDS} s"
        raise Refusal(Rep.ERR_PLATFORM, text) from None
    except Failed as failed:
        raise Refusal(Rep.ERR_PLATFORM, str(failed)) from None


class _Reads:
    """READs of a policy, one after the other; how they are answered is in `_answered`."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._reads = 0

    async def __call__(self, request: Request) -> bytes:
        """Do a READ, in the upstream's offsets. Raises `Failed`."""
        self._reads += 1
        if request.length > MAX_BYTES or self._reads > MAX_READS:
            raise ValueError(
                f"READ {self._reads} of {request.length} bytes before the export is open"
            )
        if not request.length:
            return b""
        answers: list[Answer] = []
        upstream = self._traffic.plan.upstream
        job = translate(upstream, Cmd.READ, 0, request.offset, request.length)
        self._traffic.jobs.ask(job, answers.append)
        await self._answered(answers)
        [answer] = answers
        if answer.error:
            raise Failed(normal_error(Cmd.READ, answer.error), answer.text)
        return b"".join(data for _offset, data in answer.data)

    async def _answered(self, answers: list[Answer]) -> None:
        """Wait until there is an answer. Raises `Failed`."""
        raise NotImplementedError


class Reader(_Reads):
    """Reads over a link that nothing else uses."""

    def __init__(self, link: Link) -> None:
        super().__init__(Traffic(_whole(link)))
        self._replies = reply_scan(self._traffic)
        self._socket = Awaited(link.socket)
        self._received = bytearray()

    async def _answered(self, answers: list[Answer]) -> None:
        try:
            while not answers:
                await self._step()
        except (WireError, trio.BrokenResourceError) as error:
            raise Failed(Errno.EIO, f"the server's disk cannot be read: {error}") from None

    async def _step(self) -> None:
        asks = b"".join(self._traffic.to_upstream)
        self._traffic.to_upstream.clear()
        if asks:
            await self._socket.send_all(asks)
        data = await self._socket.receive_some(64 * limits.KIB)
        if not data:
            raise WireError("the server has closed the connection")
        self._received += data
        received = bytearray(self._received)
        taken = self._replies.feed(received, memoryview(received), 0, len(received), [])
        del self._received[:taken]


class JoinedReader(_Reads):
    """Reads over a trunk, among others."""

    def __init__(self, joined: Joined) -> None:
        super().__init__(Traffic(_whole(joined), send=joined.ask))
        self._joined = joined
        self._woken = trio.Event()
        joined.wakes(self._act)

    def _act(self, go_on: Callable[[], None]) -> None:
        go_on()
        self._woken.set()

    async def _answered(self, answers: list[Answer]) -> None:
        while not answers:
            self._woken = trio.Event()
            self._joined.push()
            if not answers:
                await self._woken.wait()


def _whole(link: Link | Joined) -> Plan:
    """Give the plan of one who may have all of an export."""
    return plan(offer(view_of(link.export), structured=False), link.export, link.dialect)
