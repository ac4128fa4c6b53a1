"""Listening to what a running gateway tells behind an answer, line by line, as `nbd-gateway trace` does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from gateway.admin.control import (
    MAX_ANSWER_BYTES,
    ControlAnswer,
    ControlError,
    Misunderstood,
    connected,
    object_of,
)
from gateway.wire.limits import KIB


@asynccontextmanager
async def listening(
    path: Path, verb: str, arguments: Mapping[str, object] = {}
) -> AsyncIterator[tuple[ControlAnswer, AsyncIterator[dict[str, Any]]]]:
    """Have a running gateway do something, and give what it tells behind its answer: objects, until it ends, or
    the block does. Raises `ControlError`.
    """
    more = bytearray()
    async with connected(path, verb, arguments, more) as (answer, stream):
        yield answer, _objects(path, stream, more)


async def _objects(
    path: Path, stream: trio.SocketStream, received: bytearray
) -> AsyncIterator[dict[str, Any]]:
    try:
        while True:
            *lines, rest = received.split(b"\n")
            for line in lines:
                yield object_of(bytes(line))
            received = rest
            if len(received) > MAX_ANSWER_BYTES:
                raise Misunderstood(f"expected lines of no more than {MAX_ANSWER_BYTES} bytes")
            data = await stream.receive_some(64 * KIB)
            if not data:
                return
            received += data
    except trio.BrokenResourceError:
        return
    except Misunderstood as error:
        raise ControlError(f"{path}: {error}") from None
