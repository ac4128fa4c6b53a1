"""Listening to what a running gateway tells after an answer, line by line, as `nbd-gateway trace` does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from gateway.admin.asking import ControlError, connected
from gateway.admin.control import MAX_ANSWER_BYTES, ControlAnswer, Misunderstood, object_of
from gateway.wire.limits import KIB


@asynccontextmanager
async def listening(
    path: Path, verb: str, arguments: Mapping[str, object] = {}
) -> AsyncIterator[tuple[ControlAnswer, ToldBehind]]:
    """Have a running gateway do something, and give what it tells after its answer: objects, until it ends, or
    the block does. Raises `ControlError`.
    """
    more = bytearray()
    async with connected(path, verb, arguments, more) as (answer, stream):
        yield answer, ToldBehind(path, stream, more)


class ToldBehind:
    """What a gateway tells after an answer, object by object."""

    def __init__(self, path: Path, stream: trio.SocketStream, received: bytearray) -> None:
        self._path = path
        self._stream = stream
        self._received = received

    def __aiter__(self) -> ToldBehind:
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Give the next one. Raises `ControlError`."""
        try:
            return object_of(await self._line())
        except trio.BrokenResourceError:
            raise StopAsyncIteration from None
        except Misunderstood as error:
            raise ControlError(f"{self._path}: {error}") from None

    async def _line(self) -> bytes:
        searched = 0
        while (at := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MAX_ANSWER_BYTES:
                raise Misunderstood(f"expected lines of no more than {MAX_ANSWER_BYTES} bytes")
            data = await self._stream.receive_some(64 * KIB)
            if not data:
                raise StopAsyncIteration
            self._received += data
        line = bytes(self._received[:at])
        del self._received[: at + 1]
        return line
