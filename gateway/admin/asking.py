"""The end of the control socket that asks: the command line, the child that speaks HTTP, and one worker of a
gateway that asks another.

The other end, and what is said, is in `control`. Whatever keeps us from an answer (nobody listens, the gateway
ends, something else is at that path) is a `ControlError`, in words for people.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import trio

from gateway.admin.control import (
    MAX_ANSWER_BYTES,
    ControlAnswer,
    Misunderstood,
    line_from,
    object_of,
)

ASK_SECONDS = 120
"""How long a client waits for the answer: a reload may take its time, and others may be before it."""


class ControlError(Exception):
    """No gateway could be spoken to; the text is for people."""


async def ask(path: Path, verb: str, arguments: Mapping[str, object] = {}) -> ControlAnswer:
    """Have a running gateway do something. Raises `ControlError`."""
    async with asking(path, verb, arguments) as answer:
        pass
    return answer


@asynccontextmanager
async def asking(
    path: Path, verb: str, arguments: Mapping[str, object] = {}
) -> AsyncIterator[ControlAnswer]:
    """Have a running gateway do something, and stay connected until the block ends. Raises `ControlError`."""
    async with connected(path, verb, arguments, None) as (answer, _stream):
        yield answer


@asynccontextmanager
async def connected(
    path: Path, verb: str, arguments: Mapping[str, object], more: bytearray | None
) -> AsyncIterator[tuple[ControlAnswer, trio.SocketStream]]:
    """The same, with the connection. `more` is given what came after the answer; None: nothing may come
    then.
    """
    async with AsyncExitStack() as stack:
        try:
            with trio.fail_after(ASK_SECONDS):
                connecting = trio.open_unix_socket(str(path))
                stream = await stack.enter_async_context(await connecting)
                answer = await answer_of(stream, verb, arguments, more)
        except (FileNotFoundError, ConnectionRefusedError):
            raise ControlError(f"no gateway listens at {path}") from None
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from None
        except trio.BrokenResourceError:
            raise ControlError(f"the gateway at {path} has gone without an answer") from None
        except trio.TooSlowError:
            raise ControlError(f"the gateway at {path} gave no answer in {ASK_SECONDS} s") from None
        except Misunderstood as error:
            raise ControlError(f"{path}: expected an answer of a gateway, but {error}") from None
        yield answer, stream


async def answer_of(
    stream: trio.SocketStream, verb: str, arguments: Mapping[str, object], more: bytearray | None
) -> ControlAnswer:
    """Ask over a connection, and give the answer; `more` is as with `connected`. Raises `Misunderstood`, and
    `trio.BrokenResourceError`.
    """
    # A gateway that turns us away does not read; what it says is there to be read.
    with suppress(trio.BrokenResourceError):
        await stream.send_all(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
    return _understood(await line_from(stream, MAX_ANSWER_BYTES, more))


def _understood(line: bytes) -> ControlAnswer:
    """Read an answer. Raises `Misunderstood`."""
    said = object_of(line)
    ok, done, problems = (said.get(key) for key in ("ok", "done", "problems"))
    if not isinstance(ok, bool) or not isinstance(done, list) or not isinstance(problems, list):
        raise Misunderstood('got no "ok", "done" and "problems"')
    data = said.get("data")
    if data is not None and not isinstance(data, dict):
        raise Misunderstood('got a "data" that is no object')
    return ControlAnswer(
        ok,
        tuple(map(str, done)),
        tuple(map(str, problems)),
        data,
        misunderstood=said.get("misunderstood") is True,
    )
