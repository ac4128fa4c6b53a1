"""What restricts a command beyond what an offer says: the form that restricting policies compile into. An offer
is what NBD can say of an export. What NBD cannot say stands in a `Table`: a range that must not be written, a
greatest length, WRITE_ZEROES that must not make holes. The data plane checks every request against the table
and calls nobody. That is why a policy that only restricts costs nothing.

Policies fill one table, the one nearest to the upstream first. Offsets in the table are always those of the
view that the current policy shows. When a policy shows only a part of an export, `move` translates what stands
in the table already.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.protocol.commands import NEEDS_FLAG, RANGED, WRITE_CLASS, RefusedCommand
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag

ALL_COMMANDS = frozenset(Cmd) - {Cmd.DISC}

OTHERS_NAMED = "others"
"""Commands that nobody knows are one, so that nobody can make us count them."""

_NAMES = {int(command): command.name for command in ALL_COMMANDS}

MAX_RANGES = 1024
"""Ranges of one command that a table holds: every request is checked against them, and people write them."""

_EVERY_FLAG = 0xFFFF


Ranges = tuple[tuple[int, ...], tuple[int, ...]]
"""Where ranges begin, and where they end: sorted, disjoint."""


def touches(ranges: Ranges, start: int, end: int) -> bool:
    """Say whether the bytes from `start` up to `end` touch one of the ranges."""
    starts, ends = ranges
    before = bisect_left(starts, end)  # how many begin before the end
    return before > 0 and ends[before - 1] > start


@dataclass(frozen=True, slots=True)
class Barred:
    """A range that a command must not touch, in bytes; `end` is behind it."""

    start: int
    end: int
    refused: RefusedCommand


@dataclass(frozen=True, slots=True)
class Row:
    """What a table says of one command."""

    refused: RefusedCommand | None = None
    """Set if the command is refused altogether."""
    longest: int | None = None
    """Longest length in bytes."""
    too_long: RefusedCommand | None = None
    """How a longer request is refused."""
    barred: tuple[Barred, ...] = ()
    """Ranges, the last added first: its policy stands nearest to the client, and decides first."""
    refused_flags: tuple[tuple[int, RefusedCommand], ...] = ()
    """Command flags that are refused."""
    kept_flags: int = _EVERY_FLAG
    """Command flags that go on upstream."""
    added_flags: int = 0
    """Command flags that are set on what goes upstream."""

    def refusal(self, command: Cmd, flags: int, offset: int, length: int) -> RefusedCommand | None:
        """Say why a request is refused; None if it is not."""
        if self.refused is not None:
            return self.refused
        for flag, refused in self.refused_flags:
            if flags & flag:
                return refused
        if command not in RANGED:
            return None
        if self.longest is not None and length > self.longest:
            return self.too_long
        for barred in self.barred:
            if offset < barred.end and barred.start < offset + length:
                return barred.refused
        return None

    @property
    def ranges(self) -> Ranges | None:
        """Give the ranges in the form that the data plane looks them up in; None if there are none."""
        if not self.barred:
            return None
        merged: list[list[int]] = []
        for start, end in sorted((barred.start, barred.end) for barred in self.barred):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        return tuple(start for start, _ in merged), tuple(end for _, end in merged)

    def passed_flags(self, flags: int) -> int:
        """Give the command flags that go upstream for a client's."""
        return flags & self.kept_flags | self.added_flags


FREE = Row()
"""The row of a command that a table does not restrict."""


@dataclass
class Table:
    """What policies say of commands. `size` is that of the current policy's view, in bytes."""

    size: int
    rows: dict[Cmd, Row] = field(default_factory=dict)
    most_in_flight: int | None = None
    """Commands of one session that may be under way at a time."""
    said_by: str = ""
    """What the texts of refusals begin with."""
    policy: str = ""
    """The name of the policy that fills it now."""
    read_only_by: str = ""
    """The name of the policy by which the export is read-only; empty: it is not, or the server says so."""

    def __getitem__(self, command: Cmd) -> Row:
        return self.rows.get(command, FREE)

    # --- What policies call

    def refuse(self, *commands: Cmd, error: Errno = Errno.EPERM, text: str) -> None:
        """Refuse commands altogether. They are not offered either."""
        for command in commands:
            self._change(command, refused=self._refused(command, error, text))

    def protect(
        self,
        start: int,
        end: int,
        *,
        commands: Iterable[Cmd] = WRITE_CLASS,
        error: Errno = Errno.EPERM,
        text: str,
    ) -> None:
        """Refuse commands that touch bytes from `start` up to `end`. Raises ValueError over `MAX_RANGES`."""
        for command in commands:
            barred = Barred(start, end, self._refused(command, error, text))
            ranges = (barred, *self[command].barred)
            if len(ranges) > MAX_RANGES:
                raise ValueError(f"more than {MAX_RANGES} ranges")
            self._change(command, barred=ranges)

    def limit_length(
        self, command: Cmd, longest: int, *, error: Errno = Errno.EINVAL, text: str
    ) -> None:
        """Refuse requests that are longer than `longest` bytes."""
        now = self[command].longest
        if now is None or longest <= now:
            refused = self._refused(command, error, text)
            self._change(command, longest=longest, too_long=refused)

    def refuse_flag(self, command: Cmd, flag: CmdFlag, *, error: Errno, text: str) -> None:
        """Refuse a command with a command flag."""
        refused = RefusedCommand(
            error, f"{self.said_by}{command.name} with {flag.name}: {text}", self.policy
        )
        flags = ((int(flag), refused), *self[command].refused_flags)
        self._change(command, refused_flags=flags)

    def drop_flag(self, command: Cmd, flag: CmdFlag) -> None:
        """Take a command flag off what goes upstream, and act as if it had been obeyed."""
        row = self[command]
        # A policy nearer to the upstream that adds the flag does so all the same. One that refuses the flag
        # does not get to see it.
        still = tuple(each for each in row.refused_flags if not each[0] & flag)
        self._change(command, kept_flags=row.kept_flags & ~flag, refused_flags=still)

    def add_flag(self, command: Cmd, flag: CmdFlag) -> None:
        """Set a command flag on everything that goes upstream, unless a policy nearer to the upstream drops it.
        If one there refuses the flag, the command is refused.
        """
        row = self[command]
        for refused_flag, why in row.refused_flags:
            if refused_flag & flag:
                self._change(command, refused=row.refused or why)
        self._change(command, added_flags=row.added_flags | (flag & row.kept_flags))

    def limit_in_flight(self, most: int) -> None:
        """Let no more than `most` commands of a session be under way; at least 1."""
        now = self.most_in_flight
        self.most_in_flight = max(1, most if now is None else min(now, most))

    # --- What the compiler calls

    def move(self, offset: int, size: int) -> None:
        """Go on with the view of `size` bytes that begins at `offset` of the current one."""
        for command, row in self.rows.items():
            barred = tuple(
                Barred(max(0, each.start - offset), min(size, each.end - offset), each.refused)
                for each in row.barred
                if each.start - offset < size and each.end > offset
            )
            self._change(command, barred=barred)
        self.size = size

    def leave_to_stages(self, commands: Iterable[Cmd]) -> None:
        """Forget what is said of commands, for a hook may make other commands of them. The policies behind the
        hook judge those when they come.
        """
        for command in commands:
            self.rows.pop(command, None)

    def _refused(self, command: Cmd, error: Errno, text: str) -> RefusedCommand:
        return RefusedCommand(error, f"{self.said_by}{command.name}: {text}", self.policy)

    def _change(self, command: Cmd, **changes: object) -> None:
        said: dict[str, object] = {name: getattr(self[command], name) for name in Row.__slots__}
        self.rows[command] = Row(**(said | changes))  # type: ignore[arg-type] # names are checked by Row


def agreed_flags(flags: int, table: Table) -> int:
    """Give transmission flags without those that promise what the table refuses altogether."""
    for command, flag in NEEDS_FLAG.items():
        if table[command].refused is not None:
            flags &= ~flag
    if all(table[command].refused is not None for command in WRITE_CLASS):
        flags |= Flag.READ_ONLY
    return flags


def command_named(word: int) -> str:
    """Give the name of the command in a request's word of flags and command."""
    return _NAMES.get(word & 0xFFFF, OTHERS_NAMED)
