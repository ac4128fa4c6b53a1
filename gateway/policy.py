"""The policy API: what an operator's restrictions and changes are written with.

A policy is one file in a package of policies; the file's name is the policy's name, its docstring the page that
`nbd-gateway policies NAME` shows. The file imports this module and no other of the gateway, and defines one
subclass of `Policy`, whose fields are the options that the configuration may give and whose methods are hooks.
A policy overrides the hooks that it needs. docs/writing-a-policy.md walks through one. This is
longer than other modules because there is no other for a policy to import.

The policies of a session stand in a chain: those of the matching [[rule]] first, in the order in which they are
written, then those of the [[export]]. The first stands nearest to the client. Each sees the export as the one
behind it hands it on (`View`), and its offsets are those that the one before it hands on.

Hooks, in the order of a connection's life:

    mistakes     what is wrong with the options, given the names of the exports
    lacks        what it will need of the machine, and is not there (for `check`, and a line of the log)
    holds        does the rule hold for this client, now? (only in a [[rule]])
    admit        may this client have the export?
    asked        the export's name, for the name that the client says
    exports      what LIST shows
    context      may this meta context be had?
    peek         a client asks what it would get
    join, leave  a session begins and ends
    remembers    of which sessions it knows something together
    counted      in which numbers a session counts, if there are several processes
    denied       a client was not given the export
    prepares, prepare   read the disk before it is described
    over         know what the policies behind show
    describe     size, flags, block sizes, contexts
    commands     what each command may do
    charges      what limits the session's speed
    hooked       which commands go through the hooks of the next line
    read write zero trim cache block_status flush, and each for every ranged one without a hook of its own
    inherit, retire   another configuration is in force

All but `prepare` and the hooks of commands (`read` and so on) are plain functions that decide and do not wait.
All of them run in the thread that serves everybody, so a file that may hang is written by a `Writer`, which has
a thread of its own. A policy without a hook of commands costs the data plane nothing: what `describe` and
`commands` say is compiled into the table that every request is held against anyway. A hook of commands is a
coroutine for each command, in which anything may be awaited; `explain` names the commands that it slows.

Errors: `Denied` (the client does not get the export) and `Failed` (one command fails). Anything else is a bug
of the policy, and the log has the traceback: a command fails with EIO; in a hook before that, the client is
hung up on, and nobody else; in `inherit` or `retire`, the reload goes on, and the policy begins anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, WithJsonSchema

from gateway.identity import Identity
from gateway.log.ids import new_id
from gateway.log.writer import Outcome, Sink, Writer
from gateway.protocol.commands import RANGED, WRITE_CLASS
from gateway.protocol.export import View, together
from gateway.protocol.table import Table
from gateway.there import unexpanded
from gateway.throttle import Bucket, Charge, Unit
from gateway.uri import format_size, parse_size, size_of
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes, ListedExport

__all__ = [
    "RANGED",
    "WRITE_CLASS",
    "BlockSizes",
    "Bucket",
    "Charge",
    "Client",
    "Cmd",
    "CmdFlag",
    "Denied",
    "Errno",
    "Error",
    "Failed",
    "Field",
    "Flag",
    "Headcount",
    "Identity",
    "ListedExport",
    "Next",
    "Outcome",
    "Policy",
    "PrivateAttr",
    "Request",
    "Result",
    "Scope",
    "Session",
    "Sink",
    "Size",
    "Status",
    "Table",
    "Unit",
    "View",
    "Writer",
    "format_size",
    "parse_size",
    "unexpanded",
]


# --- Errors


class Denied(Exception):
    """The client does not get the export, or the meta context. The text is logged. The client is told it as
    well, unless the export is hidden, or `admit` raises: then the client hears what a rule that denies it would
    say.
    """


class Failed(Exception):
    """A command fails with `error`; `text` is for those who can be told, `offset` (bytes) says where."""

    def __init__(self, error: Errno, text: str = "", offset: int | None = None) -> None:
        super().__init__(f"{error.name}: {text}" if text else error.name)
        self.error = error
        self.text = text
        self.offset = offset


# --- Values


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, and when."""

    identity: Identity
    at: datetime
    """In local time, with its zone."""
    listener: str = ""
    """The URI of the listener that it came by."""
    hypothetical: bool = False
    """There is no such client: `explain` asks what it would get. Nothing of that is to be recorded."""
    id: str = field(default_factory=new_id)
    """Tells clients apart, those of other runs as well; the log has it in each line, as `session`."""


@dataclass(eq=False, slots=True)
class Session:
    """One client that has opened an export."""

    client: Client
    export: str
    """The export's name in our configuration."""
    commands: int = 0
    """How many commands went upstream. This, and what follows, is counted up to the end of the session."""
    bytes_from_client: int = 0
    bytes_to_client: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(command, error) -> how often it was answered here."""
    why: str = ""
    """Why it ended, if not by the client in good order."""


Scope = Literal["session", "export", "place"]


@dataclass(frozen=True, slots=True)
class Headcount:
    """A number of sessions that has a limit: see `Policy.counted`."""

    by: tuple[str, ...]
    """What is counted at this place, in words that are the same in every process: `("address", "10.1.2.3")`."""
    most: int
    """So many there may be."""
    whose: str = ""
    """Whose they are, in words: `" of this identity"`."""

    def full(self, here: int) -> str:
        """Say that there are as many as may be."""
        connections = "connection is" if here == 1 else "connections are"
        return f"{here} {connections} open{self.whose}, and {self.most} may be"


"""Sessions of which a policy knows something together: each by itself, those of one export, all that pass its
place of the configuration."""

Status = Mapping[str, Sequence[tuple[int, int]]]
"""Meta context -> extents: (length in bytes, status flags)."""

Result = bytes | bytearray | memoryview | Status | None
"""What a command gives: READ its data, BLOCK_STATUS a `Status`, others None."""


@dataclass(frozen=True, slots=True)
class Request:
    """One command on its way upstream. Offsets and lengths are in bytes."""

    command: Cmd
    offset: int = 0
    length: int = 0
    flags: int = 0
    """Command flags."""
    data: bytes | bytearray | memoryview = field(default=b"", repr=False)
    """Of a WRITE."""
    contexts: tuple[str, ...] = ()
    """Of a BLOCK_STATUS."""

    @property
    def end(self) -> int:
        """Where its range ends."""
        return self.offset + self.length

    def has(self, flag: CmdFlag) -> bool:
        """Say whether a command flag is set."""
        return bool(self.flags & flag)

    def without(self, *flags: CmdFlag) -> Request:
        """Give the request without command flags."""
        return replace(self, flags=self.flags & ~together(flags))

    def moved(self, distance: int) -> Request:
        """Give the request at an offset that is `distance` bytes further."""
        return replace(self, offset=self.offset + distance)

    def part(self, start: int, end: int) -> Request:
        """Give what the request does from `start` up to `end`. Raises ValueError if that is no part of it."""
        if not self.offset <= start <= end <= self.end:
            raise ValueError(f"{start} to {end} is no part of {self.offset} to {self.end}")
        first = start - self.offset
        data = memoryview(self.data)[first : first + end - start]
        return replace(self, offset=start, length=end - start, data=data)

    def instead(self, command: Cmd, *, data: bytes | memoryview = b"", flags: int = 0) -> Request:
        """Give another command for the same range: a WRITE with `data` of its length."""
        return replace(self, command=command, data=data, flags=flags)


Next = Callable[[Request], Awaitable[Any]]
"""Hands a request to the policy behind, and in the end to the server; gives its `Result`. Raises `Failed`. It
may be called any number of times, in any task."""


# --- Types for options


SIZE_IN_WORDS = 'size such as "64K"'
Size = Annotated[
    int,
    PlainValidator(size_of),
    # A title is what the documentation has for the type; policies' own types may have one too.
    WithJsonSchema({"title": SIZE_IN_WORDS, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
]
"""An option in bytes: `4096`, `"64K"`, `"1G"`."""

_ERRORS = tuple(error.name for error in Errno)


def _error(value: object) -> Errno:
    if isinstance(value, Errno):
        return value
    if value not in _ERRORS:
        raise ValueError(f"expected one of {', '.join(_ERRORS)}, got {value}")
    return Errno[str(value)]


Error = Annotated[Errno, PlainValidator(_error), WithJsonSchema({"enum": list(_ERRORS)})]
"""An option that names an error value of proto.md: `"EPERM"`."""


def _kebab(name: str) -> str:
    return name.replace("_", "-")


# --- Policies


class Policy(BaseModel):
    """What every policy is a subclass of. One instance stands for one place in the configuration, and all
    sessions that pass there share it.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=_kebab,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )

    timed: ClassVar[bool] = False
    """`holds` depends on the time, so sessions have to be looked at again as it passes."""

    def mistakes(self, exports: Collection[str]) -> Iterable[str]:
        """Say what is wrong with the options, if the configuration has [[export]]s of these names: what would
        have no effect without anybody noticing.
        """
        return ()

    def lacks(self) -> Iterable[str]:
        """Say what this will need of the machine that is not there, for `nbd-gateway check`, and for the log
        when a gateway begins to serve (then this runs in a thread). Open and make nothing here.
        """
        return ()

    # --- Control plane

    def holds(self, client: Client) -> bool:
        """Say whether the rule that this stands in holds for a client; if not, the next rule is tried."""
        return True

    def admit(self, client: Client) -> None:
        """Let a client have the export. Raises `Denied`."""

    def asked(self, name: str) -> str | None:
        """Give the export's name for the one that a client says; None: there is none by that name."""
        return name

    def exports(self, listed: Sequence[ListedExport]) -> Sequence[ListedExport]:
        """Give what LIST shows of what the policies behind show. `asked` has to know the names."""
        return listed

    def context(self, name: str) -> bool:
        """Say whether a meta context may be had; if not, it is left out. Raises `Denied`: then a client that
        asks for it is refused.
        """
        return True

    def peek(self, session: Session) -> Policy:
        """A client asks what it would get: give the policy that would stand here if it opened the export now.
        Count nothing: no `leave` follows. Raises `Denied`.
        """
        return self

    def join(self, session: Session) -> Policy:
        """A session begins: give the policy that stands here for it. If this does not raise `Denied`, `leave`
        of `self` is called at the end. If you give another policy than `self`, give the same in `peek`: what
        INFO tells has to be what GO does.
        """
        return self

    def leave(self, session: Session) -> None:
        """A session has ended, for whatever reason."""

    def stands_elsewhere(self, session: Session) -> bool:
        """Another process of this gateway serves a session to which this would stand, while it is exchanged for
        a newer one. Count it, however many there are, and say whether it was counted: then `leave` is called
        when it ends there.
        """
        return False

    def remembers(self) -> Scope:
        """Say of which sessions this knows something together: with several `workers`, those of one export are
        all in one process, and those of several exports are not. By default, a policy that has `leave` or
        `inherit` counts all that pass its place. Override it if yours counts less.
        """
        counts = _overridden(type(self), "leave") or _overridden(type(self), "inherit")
        return "place" if counts else "session"

    def counted(self, session: Session) -> Sequence[Headcount]:
        """Say in which numbers a session counts that hold for all who pass this place, whichever process of the
        gateway serves them. With several `workers` these are kept for all together: there is room for the
        session in each of them before `join` is called, which then counts those of its own process. Without
        this hook a policy that `remembers` all of its place is refused there. One that has it for the sake of
        its `charges` gives nothing, and makes buckets that are `shared`.
        """
        return ()

    def denied(self, client: Client, export: str, why: str) -> None:
        """A client was not given the export that this stands at."""

    def prepares(self) -> bool:
        """Say whether `prepare` has anything to do, so that INFO already needs a link that is open. Override it
        where that depends on the options.
        """
        return _overridden(type(self), "prepare")

    async def prepare(self, view: View, next: Next) -> Policy:
        """Look at the disk, once for each link, before it is described: give the policy that stands here for
        this link. `view` is what the policies behind show; `next` takes READs alone. Raises `Denied`, `Failed`.
        """
        return self

    def over(self, view: View) -> Policy:
        """Give the policy that stands here over what the policies behind show: where hooks have to know it."""
        return self

    def describe(self, view: View) -> View:
        """Give the export as this policy shows it. Raises `Denied`."""
        return view

    def commands(self, table: Table) -> None:
        """Say what commands may do, in offsets of the view that `describe` gave.

        It is also called without a view, for the sake of `table.limit_in_flight` alone: before the session's
        first command, and after a reload. Then `self` is what `join` gave, or the policy now in force, and
        neither `prepare` nor `over` was called on it.
        """

    def charges(self, session: Session) -> Sequence[Charge]:
        """Give what a session's commands are charged to: the same buckets each time. After a reload the policy
        now in force is asked, which this session may never have joined.

        A bucket whose sessions may be in several processes says by whom it is `shared`, in words that are the
        same in all of them: what it holds is then lent to it, of one bucket for all (`docs/workers.md`).
        """
        return ()

    # --- Data plane. Offsets are those of the view that `describe` gave; `next` takes those of the view that it
    # was given.

    def hooked(self, view: View) -> Collection[Cmd]:
        """Give the commands that have to go through the hooks below. `view` is what `describe` was given.
        Override it where that depends on the options or the export; by default it is all that have a hook.
        """
        return hooks_of(type(self))

    async def each(self, request: Request, next: Next) -> Result:
        """Do a ranged command that has no hook of its own."""
        result: Result = await next(request)
        return result

    async def read(self, request: Request, next: Next) -> Result:
        """Do a READ: give its data, exactly as long as it was asked for."""
        return await self.each(request, next)

    async def write(self, request: Request, next: Next) -> Result:
        """Do a WRITE."""
        return await self.each(request, next)

    async def zero(self, request: Request, next: Next) -> Result:
        """Do a WRITE_ZEROES."""
        return await self.each(request, next)

    async def trim(self, request: Request, next: Next) -> Result:
        """Do a TRIM."""
        return await self.each(request, next)

    async def cache(self, request: Request, next: Next) -> Result:
        """Do a CACHE."""
        return await self.each(request, next)

    async def block_status(self, request: Request, next: Next) -> Result:
        """Do a BLOCK_STATUS: give the extents of every context that is asked for."""
        return await self.each(request, next)

    async def flush(self, request: Request, next: Next) -> Result:
        """Do a FLUSH."""
        result: Result = await next(request)
        return result

    # --- Reload

    def inherit(self, before: Self) -> None:
        """Take over what `before` has counted: the same policy at the same place of the configuration that was
        in force until now.
        """

    def retire(self) -> None:
        """The configuration now in force has no such policy at this place any more."""


HOOK_OF: Mapping[Cmd, str] = {
    Cmd.READ: "read",
    Cmd.WRITE: "write",
    Cmd.WRITE_ZEROES: "zero",
    Cmd.TRIM: "trim",
    Cmd.CACHE: "cache",
    Cmd.BLOCK_STATUS: "block_status",
    Cmd.FLUSH: "flush",
}


def hooks_of(policy: type[Policy]) -> frozenset[Cmd]:
    """Give the commands for which a class of policies has hooks."""
    commands = {command for command, name in HOOK_OF.items() if _overridden(policy, name)}
    if _overridden(policy, "each"):
        commands |= RANGED
    return frozenset(commands)


def _overridden(policy: type[Policy], name: str) -> bool:
    return getattr(policy, name) is not getattr(Policy, name)
