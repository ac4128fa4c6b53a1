"""What a chain of policies adds up to: one view and one table for the data plane, and stages for requests that
go through hooks.

A chain is compiled from the upstream to the client: each policy describes the export as the one behind it shows
it, and adds to the table. A request for which no policy has a hook is checked against one table, however many
policies there are. A request for which some policy has a hook goes through the policies one by one
(`Compiled.do`). Each of them checks it against what it shows itself, for a hook may make another request of it.

A policy that is only observed (`mode = "observe"`) is left out of all that. The `shadow` is what the chain
would be with it. A request that the shadow refuses is logged, and passes. Of the observed policies a shadow has
only those that leave offsets as they are, because a request has only one offset.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from gateway.policy import HOOK_OF, Bucket, Denied, Failed, Next, Policy, Request, Result, Session
from gateway.protocol.commands import RANGED, RefusedCommand, refusal
from gateway.protocol.export import Offer, View, offer
from gateway.protocol.table import Table, agreed_flags
from gateway.wire.constants import Cmd, TransmissionFlag
from gateway.wire.handshake import MetaContext

Bottom = Callable[[Request], Awaitable[Result]]
"""Does a request at the upstream, in its offsets. Raises `Failed`."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A policy at its place in the configuration."""

    policy: Policy
    name: str
    """What `use` calls it."""
    observed: bool = False
    """It is only observed: a request that it would refuse is logged, and passes."""
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """As they are written in the configuration."""
    place: tuple[str, ...] = field(default=(), compare=False)
    """Where it stands there, in words that outlive a reload, and are the same in every process."""


@dataclass(frozen=True)
class Stage:
    """One policy of a chain, over one export."""

    placed: Placed
    behind: View
    """What the policy was given."""
    view: View
    """What the policy shows."""
    table: Table
    """What the policy itself says of commands, in offsets of `view`."""
    hooked: frozenset[Cmd]

    @cached_property
    def _offer(self) -> Offer:
        names = enumerate(sorted(self.view.contexts), start=1)
        selected = tuple(MetaContext(number, name) for number, name in names)
        return offer(self.view, structured=True, extended=True, selected=selected)

    def refusal(self, request: Request) -> RefusedCommand | None:
        """Say why a request must not go past this policy."""
        command, flags = request.command, request.flags
        refused = self.table[command].refusal(command, flags, request.offset, request.length)
        word = flags << 16 | command
        return refused or refusal(self._offer, word, request.offset, request.length)

    async def do(self, request: Request, behind: Next) -> Result:
        """Do a request; `behind` is the next stage."""
        refused = self.refusal(request)
        if refused is not None:
            raise Failed(refused.error, refused.text)
        command = request.command
        request = replace(request, flags=self.table[command].passed_flags(request.flags))
        if command in self.hooked:
            result: Result = await getattr(self.placed.policy, HOOK_OF[command])(request, behind)
        else:
            distance = self.view.base - self.behind.base
            result = await behind(request.moved(distance) if command in RANGED else request)
        return result


@dataclass(frozen=True)
class Compiled:
    """What a chain adds up to over one export."""

    view: View
    """What the client is shown."""
    table: Table
    """What holds for commands without a hook, in offsets of the view. For commands with a hook: what the policy
    with the hook says, and those that stand nearer to the client."""
    stages: tuple[Stage, ...]
    """Nearest to the client first."""
    shadow: Compiled | None = None
    would: tuple[str, ...] = ()
    """What observed policies would have kept from the client, beside what the shadow refuses."""

    @cached_property
    def hooked(self) -> Mapping[Cmd, str]:
        """Give the commands that take hooks, and the names of the policies that have them."""
        commands = {command for stage in self.stages for command in stage.hooked}
        return {
            command: ", ".join(s.placed.name for s in self.stages if command in s.hooked)
            for command in Cmd
            if command in commands
        }

    async def do(self, request: Request, bottom: Bottom) -> Result:
        """Do a request through all hooks. Raises `Failed`."""

        async def at(number: int, request: Request) -> Result:
            if number:  # a policy has handed it on
                _check(request)
            if number == len(self.stages):
                return await bottom(request)
            return await self.stages[number].do(request, lambda behind: at(number + 1, behind))

        return await at(0, request)


def _check(request: Request) -> None:
    """Refuse a request that no client can have sent: a policy with a bug has made it. The policies behind look
    at the length, and the server is sent the data. If these were not the same, a WRITE would get past
    `protect`, or be answered with success and not be done. Raises ValueError.
    """
    if request.offset < 0 or request.length < 0:
        raise ValueError(f"expected an offset and a length of 0 or more, got {request}")
    if request.command is Cmd.WRITE and len(request.data) != request.length:
        raise ValueError(f"expected {request.length} bytes to WRITE, got {len(request.data)}")


class Enlarged(Exception):
    """A policy shows more than it was given, and has no hooks for it: a bug of the policy."""


def compile_chain(chain: Sequence[Placed], first: View) -> Compiled:
    """Compile a chain over an export's first view. Raises `Denied`, `Enlarged`, and what policies in force
    raise. What one raises that is only observed changes nothing.
    """
    enforced = _compiled([placed for placed in chain if not placed.observed], first)
    if not any(placed.observed for placed in chain):
        return enforced
    shadow, would = _shadow(chain, enforced, first)
    return replace(enforced, shadow=shadow, would=would)


def _compiled(chain: Sequence[Placed], first: View, *, shadow: bool = False) -> Compiled:
    view, table = first, Table(first.size)
    stages: list[Stage] = []
    for placed in reversed(chain):
        stages.insert(0, _stage(placed, view, table, shadow=shadow))
        view = stages[0].view
    return Compiled(view, table, tuple(stages))


def _stage(placed: Placed, behind: View, table: Table, *, shadow: bool) -> Stage:
    """Have a policy describe what is behind it, and add to the table. The hooks of a shadow do nothing, so
    requests reach the policies behind them unchanged.
    """
    policy = placed.policy.over(behind)
    view = policy.describe(behind)
    hooked = frozenset(policy.hooked(behind))
    inside = behind.base <= view.base and (view.base + view.size <= behind.base + behind.size)
    if not inside and not hooked >= RANGED:
        raise Enlarged(f"{placed.name} shows {view.size} bytes of {behind.size}")
    table.move(view.base - behind.base, view.size)
    if not shadow:
        table.leave_to_stages(hooked)
    own = Table(view.size)
    policy.commands(own)
    table.said_by = f"{placed.name}: " if placed.observed else ""
    table.policy = placed.name
    policy.commands(table)
    if view.flags & ~behind.flags & TransmissionFlag.READ_ONLY:
        table.read_only_by = placed.name
    view = replace(view, flags=agreed_flags(view.flags, own))
    return Stage(replace(placed, policy=policy), behind, view, own, hooked)


def _shadow(
    chain: Sequence[Placed], enforced: Compiled, first: View
) -> tuple[Compiled, tuple[str, ...]]:
    """Give what a chain would be if nothing were only observed, and what of that no shadow can have. Each
    policy is judged at its own place: over what those behind it would show.
    """
    shadow = Compiled(first, Table(first.size), ())
    in_force = list(enforced.stages)
    would: list[str] = []
    for placed in reversed(chain):
        view = shadow.view if placed.observed else in_force.pop().view
        table = replace(shadow.table, rows=dict(shadow.table.rows))
        try:
            stage = _stage(placed, shadow.view, table, shadow=True)
        except Exception as error:  # a bug, too, must not be felt before the policy is in force
            why = objection(placed, error)
        else:
            if (stage.view.base, stage.view.size) == (view.base, view.size):
                shadow = Compiled(stage.view, table, (stage, *shadow.stages))
                continue
            why = f"{placed.name}: {stage.view.size} bytes from {stage.view.base} on are shown"
        if placed.observed:
            would.insert(0, why)
            continue
        # It takes what is in force. What it does not take is what observed ones would show, and the shadow
        # forgets them. (Where there are none, a hook in force keeps tables apart that are too much for one.)
        if names := ", ".join(each.placed.name for each in shadow.stages if each.placed.observed):
            would.insert(0, f"with {names} in force, {why}")
        shadow = Compiled(view, Table(view.size), enforced.stages[len(in_force) :])
    return shadow, tuple(would)


def objection(placed: Placed, error: Exception) -> str:
    """Say which policy denies something, and why. Many texts of policies begin with the name already. What is
    no denial is a bug, and said to be what it is.
    """
    known = isinstance(error, (Denied, Enlarged))
    text = str(error) if known else f"{type(error).__name__}: {error}"
    named = text.startswith((f"{placed.name}: ", f"{placed.name} "))
    return text if named else f"{placed.name}: {text}"


class Leaves(Protocol):
    """What has to be told when a session ends."""

    def leave(self, session: Session) -> None:
        """A session has ended."""


class Reserved(Leaves, Protocol):
    """What a session has of what is counted in all processes; it is free again when the session has left."""

    @property
    def would(self) -> Mapping[int, str]:
        """Observed policies, by their places in the chain, that have no room for it -> what they would say."""
        ...


class Bookkeeper(Protocol):
    """Keeps what policies count in all processes of the gateway together (`Policy.counted`)."""

    async def reserve(self, chain: Sequence[Placed], session: Session) -> Reserved:
        """Have a session counted wherever it counts, before it joins. Raises `Denied`: there is no room."""
        ...

    def shares(self, placed: Placed, bucket: Bucket) -> None:
        """Have a bucket filled that a policy shares with those of other processes."""


@dataclass
class Membership:
    """A chain as it stands for one session."""

    session: Session
    chain: list[Placed]
    members: list[Leaves]
    """The policies that have to be told when the session ends."""
    would: list[str]
    """Why observed policies would have denied it."""

    def leave(self) -> None:
        """The session has ended: the policy that joined last leaves first. To leave more than once does no
        harm.
        """
        if self.members:
            try:
                self.members.pop().leave(self.session)
            finally:
                self.leave()  # if one fails, the others count right all the same


def peek(chain: Sequence[Placed], session: Session) -> list[Placed]:
    """Give the chain as it would stand for a session that began now. Raises `Denied`."""
    return [
        placed if placed.observed else replace(placed, policy=placed.policy.peek(session))
        for placed in chain
    ]


def join(chain: Sequence[Placed], session: Session, reserved: Reserved | None = None) -> Membership:
    """Have the policies of a chain take part in a session, nearest to the client first. `reserved` is what a
    bookkeeper has for it, and is given back with the rest. Raises `Denied`, after all that had joined have
    left.
    """
    membership = Membership(session, [], [] if reserved is None else [reserved], [])
    would = {} if reserved is None else reserved.would
    try:
        for number, placed in enumerate(chain):
            if number in would:
                membership.would.append(would[number])
                continue
            try:
                policy = placed.policy.join(session)
            except Exception as error:
                if not placed.observed:
                    raise
                membership.would.append(objection(placed, error))
            else:
                membership.chain.append(replace(placed, policy=policy))
                membership.members.append(placed.policy)
    except BaseException:
        membership.leave()
        raise
    return membership


async def prepared(chain: Sequence[Placed], first: View, bottom: Bottom) -> list[Placed]:
    """Have the policies look at the disk, the one nearest to the upstream first: give the chain as it stands
    for this link. Raises `Denied`, `Failed`.
    """
    stands: list[Placed] = []
    for placed in reversed(chain):
        if not _prepares(placed):
            stands.insert(0, placed)
            continue
        behind = _compiled([each for each in stands if not each.observed], first)

        async def read(request: Request, behind: Compiled = behind) -> Result:
            if request.command is not Cmd.READ:
                raise TypeError(f"prepare may only READ, and sent {request.command.name}")
            return await behind.do(request, bottom)

        policy = await placed.policy.prepare(behind.view, read)
        stands.insert(0, replace(placed, policy=policy))
    return stands


def prepares(chain: Sequence[Placed]) -> bool:
    """Say whether any policy has to look at the disk."""
    return any(map(_prepares, chain))


def _prepares(placed: Placed) -> bool:
    return not placed.observed and placed.policy.prepares()
