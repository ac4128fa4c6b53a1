"""Fail commands on purpose, to test how a client takes it.

A command that is chosen to fail is not sent to the server: it gets `error`, and has changed nothing. It is
chosen from `commands`: all of them fail, or some by chance (`rate`) or by count (`every`); only while `file`
exists, if one is named; and none in the first `after-seconds` of a session. Counting and chance begin anew
with every session; with a `seed`, the same commands in the same order fail in the same places.

Never use it for a disk that somebody needs: a guest whose writes fail gives up its file system.

Like nbdkit's error filter. That has a rate for each kind of command, which is this policy several times here.
Here FLUSH can fail too, and without a rate everything fails, where nothing does there.

    policies = [ { use = "error", commands = ["WRITE", "FLUSH"], error = "ENOSPC", rate = "1%", seed = 7 } ]
"""

import os
import random
import time
from collections.abc import Callable, Collection
from typing import Annotated, Literal, Self

from pydantic import PlainValidator, WithJsonSchema, model_validator

from gateway.policy import (
    Cmd,
    Errno,
    Failed,
    Field,
    Next,
    Policy,
    PrivateAttr,
    Request,
    Result,
    Session,
    View,
)
from gateway.policy import Error as ErrorName

MAX_SECONDS = 86400
"""A day: no test waits longer, and a mistaken unit does."""


def _share(value: object) -> float:
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise ValueError(f'expected a share from 0 to 1, or "0%" to "100%", got {value}')
    return share


_Share = Annotated[
    float,
    PlainValidator(_share),
    WithJsonSchema(
        {"title": 'share such as 0.1 or "10%"', "anyOf": [{"type": "number"}, {"type": "string"}]}
    ),
]
_Name = Literal["READ", "WRITE", "WRITE_ZEROES", "TRIM", "CACHE", "BLOCK_STATUS", "FLUSH"]


class Error(Policy):
    """`use = "error"`."""

    only: Annotated[tuple[_Name, ...], Field(strict=False)] = Field(
        default=("READ", "WRITE", "WRITE_ZEROES", "TRIM", "CACHE", "BLOCK_STATUS", "FLUSH"),
        alias="commands",
        description="Which commands fail.",
    )
    error: ErrorName = Field(default=Errno.EIO, description="The error that the client gets.")
    rate: _Share | None = Field(
        default=None, description="What share of them fails, by chance, each by a draw of its own."
    )
    every: int | None = Field(
        default=None,
        ge=1,
        description="Every so many of them one fails: with 3, the third, the sixth and so on.",
    )
    after_seconds: float = Field(
        default=0, ge=0, le=MAX_SECONDS, description="How long a session goes well first."
    )
    file: str | None = Field(default=None, description="Nothing fails while there is no such file.")
    seed: int | None = Field(
        default=None, description="Where the chance begins, so that a test can be repeated."
    )
    _chance: random.Random = PrivateAttr(default_factory=random.Random)
    _seen: int = PrivateAttr(default=0)
    _clock: Callable[[], float] = PrivateAttr(default=time.monotonic)
    _begun: float = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rate is not None and self.every is not None:
            raise ValueError(f"expected rate or every, got rate {self.rate} and every {self.every}")
        if self.seed is not None and self.rate is None:
            raise ValueError(f"expected a rate with a seed, got seed {self.seed} alone")
        return self

    def join(self, session: Session) -> Policy:
        """Count, draw and wait for each session by itself: what others do must not change a test."""
        own = self.model_copy()
        own._chance = random.Random(self.seed)
        own._begun = self._clock()
        return own

    def hooked(self, view: View) -> Collection[Cmd]:
        """Leave alone what does not fail."""
        return () if self.rate == 0 else [Cmd[name] for name in self.only]

    async def each(self, request: Request, next: Next) -> Result:
        """Fail, or hand on."""
        if self._fails():
            raise Failed(self.error, f"{request.command.name} fails on purpose")
        result: Result = await next(request)
        return result

    async def flush(self, request: Request, next: Next) -> Result:
        """Fail, or hand on."""
        return await self.each(request, next)

    def _fails(self) -> bool:
        # Path.exists raises for a directory that may not be entered.
        if self.file is not None and not os.path.exists(self.file):  # noqa: PTH110 # as said
            return False
        if self._clock() - self._begun < self.after_seconds:
            return False
        self._seen += 1
        if self.every is not None:
            return self._seen % self.every == 0
        return self.rate is None or self._chance.random() < self.rate
