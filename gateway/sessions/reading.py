"""Policies that look at the disk before it is described, and the READs that they make over an uplink before a
client has it.
"""

from __future__ import annotations

import trio

from gateway.access.chain import Placed, prepared
from gateway.config import Route
from gateway.jobs.steps import Answer
from gateway.jobs.translate import translate
from gateway.links.uplink import Uplink
from gateway.policy import Failed, Request
from gateway.protocol.commands import normal_error
from gateway.protocol.errors import Refusal
from gateway.protocol.export import offer, view_of
from gateway.scan.plan import plan
from gateway.scan.traffic import Traffic
from gateway.sessions.promise import first_view
from gateway.wire import limits
from gateway.wire.constants import Cmd, Errno, Rep
from gateway.wire.errors import WireError

MAX_BYTES = limits.MIB
"""How long one READ may be. Partition tables are a few KiB, and the data is held in memory."""

MAX_READS = 1024
"""How many READs may be made over one uplink: a chain of partitions on a hostile disk must not keep us reading
for ever."""


PREPARE_SECONDS = 30
"""How long policies may take to look at a disk before it is described: a few READs of a server that has just
answered."""


async def chain_over(chain: list[Placed], route: Route, uplink: Uplink) -> list[Placed]:
    """Give the chain as it stands over an uplink, after its policies have looked at the disk. Raises
    `Refusal`, `Denied`.
    """
    try:
        with trio.fail_after(PREPARE_SECONDS):
            return await prepared(chain, first_view(route, uplink.export), Reads(uplink))
    except trio.TooSlowError:
        text = f"policies have not seen the disk within {PREPARE_SECONDS} s"
        raise Refusal(Rep.ERR_PLATFORM, text) from None
    except Failed as failed:
        raise Refusal(Rep.ERR_PLATFORM, str(failed)) from None


class Reads:
    """READs of a policy over an uplink, one after the other."""

    def __init__(self, uplink: Uplink) -> None:
        whole = plan(offer(view_of(uplink.export), structured=False), uplink.export, uplink.dialect)
        self._traffic = Traffic(whole, send=uplink.ask)
        self._asking = uplink.asking(self._traffic)
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
        try:
            await self._asking.until(lambda: bool(answers))
        except (WireError, trio.BrokenResourceError) as error:
            raise Failed(Errno.EIO, f"the server's disk cannot be read: {error}") from None
        [answer] = answers
        if answer.error:
            raise Failed(normal_error(Cmd.READ, answer.error), answer.text)
        return b"".join(data for _offset, data in answer.data)
