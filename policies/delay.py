"""Make commands slow on purpose, to test how a client takes it, or what a distant server would be like.

Every command that is named waits for its time before it goes on to the server. Commands do not wait for each
other, so a client that has many under way is hardly slower. Times are seconds (`0.5`) or texts (`"250ms"`).
`all` is for those commands that have no time of their own. `write` is WRITE alone, whereas nbdkit's `wdelay`
also delays zeroes and TRIM.

A client may give up a connection that is so slow, as the Linux kernel does; that may be what is tested.

Like nbdkit's delay filter, but without a delay of the end of a connection, for which no client waits here.

    policies = [ { use = "delay", read = 0.01, write = "250ms", open = 1 } ]
"""

from collections.abc import Collection
from typing import Annotated

import trio
from pydantic import PlainValidator, WithJsonSchema

from gateway.policy import (
    Cmd,
    CmdFlag,
    Errno,
    Failed,
    Field,
    Next,
    Policy,
    Request,
    Result,
    View,
)

MAX_SECONDS = 3600
"""An hour is more than any client waits; a longer time is a mistaken unit."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "μs": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def _seconds(value: object) -> float:
    text = str(value).strip()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        seconds = -1
    if isinstance(value, bool) or not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f'expected seconds from 0 to {MAX_SECONDS}, or as in "250ms", got {value}')
    return seconds


_Seconds = Annotated[
    float,
    PlainValidator(_seconds),
    WithJsonSchema(
        {"title": 'seconds, or as in "250ms"', "anyOf": [{"type": "number"}, {"type": "string"}]}
    ),
]


class Delay(Policy):
    """`use = "delay"`."""

    # Fields cannot have the names of hooks.
    of_all: _Seconds = Field(
        default=0,
        alias="all",
        description="How long each command waits that has no time of its own.",
    )
    of_read: _Seconds | None = Field(default=None, alias="read", description="READ.")
    of_write: _Seconds | None = Field(default=None, alias="write", description="WRITE.")
    of_zero: _Seconds | None = Field(default=None, alias="zero", description="WRITE_ZEROES.")
    of_trim: _Seconds | None = Field(default=None, alias="trim", description="TRIM.")
    of_cache: _Seconds | None = Field(default=None, alias="cache", description="CACHE.")
    of_flush: _Seconds | None = Field(default=None, alias="flush", description="FLUSH.")
    of_block_status: _Seconds | None = Field(
        default=None, alias="block-status", description="BLOCK_STATUS."
    )
    of_open: _Seconds = Field(
        default=0, alias="open", description="Opening the export, which `all` does not delay."
    )
    fast_zero: bool = Field(
        default=True,
        description="A WRITE_ZEROES with FAST_ZERO waits too; if false, it gets ENOTSUP at once.",
    )

    def _seconds_of(self, command: Cmd) -> float:
        own = {
            Cmd.READ: self.of_read,
            Cmd.WRITE: self.of_write,
            Cmd.WRITE_ZEROES: self.of_zero,
            Cmd.TRIM: self.of_trim,
            Cmd.CACHE: self.of_cache,
            Cmd.FLUSH: self.of_flush,
            Cmd.BLOCK_STATUS: self.of_block_status,
        }[command]
        return self.of_all if own is None else own

    def hooked(self, view: View) -> Collection[Cmd]:
        """Leave alone what does not wait."""
        slow = {each for each in Cmd if each is not Cmd.DISC and self._seconds_of(each)}
        return slow if self.fast_zero else slow | {Cmd.WRITE_ZEROES}

    async def prepare(self, view: View, next: Next) -> Policy:
        """Wait before the export is described."""
        if self.of_open:
            await trio.sleep(self.of_open)
        return self

    async def each(self, request: Request, next: Next) -> Result:
        """Wait, and hand on."""
        await trio.sleep(self._seconds_of(request.command))
        result: Result = await next(request)
        return result

    async def zero(self, request: Request, next: Next) -> Result:
        """Wait, unless the client wants it fast or not at all."""
        if request.has(CmdFlag.FAST_ZERO) and not self.fast_zero:
            raise Failed(Errno.ENOTSUP, "WRITE_ZEROES is not fast here")
        return await self.each(request, next)

    async def flush(self, request: Request, next: Next) -> Result:
        """Wait, and hand on."""
        return await self.each(request, next)
