"""What a job yields, and what it returns: the values that go between a job (`translate`) and what drives it
(`jobs`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from gateway.protocol.asks import Ask, Data, Outcome
from gateway.wire.constants import Cmd
from gateway.wire.extents import Extents


@dataclass(frozen=True, slots=True)
class Claim:
    """Go on when nobody else writes from `start` up to `end`, until the job has ended."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Settled:
    """Go on when all is settled that a FLUSH of the client has to cover (see `gateway.losses.rule`). The job
    yields it after it has asked for that FLUSH.
    """


@dataclass(frozen=True, slots=True)
class Lasting:
    """Go on at once, and fail if something is lost from now on. A server that fails a FLUSH may have carried
    out a write before it, and answer that write after it. Another FLUSH for that write would succeed, and
    mean nothing.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client is told."""

    error: int = 0
    text: str = ""
    offset: int | None = None
    data: Sequence[tuple[int, Data]] = field(default=(), repr=False)
    """Of a READ: content by its offset, without a gap, in order."""
    status: Sequence[tuple[int, Extents]] = ()
    """Of a BLOCK_STATUS: the client's context id, and its extents."""


@dataclass(frozen=True, slots=True)
class Outside:
    """Go on when a policy's hooks have done the command, which is not done here. Offsets are the client's."""

    command: Cmd
    offset: int
    length: int
    flags: int
    data: Data = field(default=b"", repr=False)
    contexts: tuple[tuple[int, int | None], ...] = ()
    """Of a BLOCK_STATUS: the client's context id, and the link's (None: answered here)."""


Step = list[Ask] | Claim | Settled | Lasting | Outside


Job = Generator[Step, list[Outcome], Answer]


def hooked(outside: Outside) -> Job:
    """Give the job of a command that hooks do: its answer is given to `Jobs.answer`."""
    yield outside
    raise AssertionError("what is done outside is answered, not gone on with")


def moved(job: Job, base: int) -> Job:
    """Give a job's answer in the offsets of a client whose export begins at `base`."""
    answer = yield from job
    if answer.offset is None:
        return answer
    return replace(answer, offset=answer.offset - base)
