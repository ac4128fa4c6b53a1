"""What policies change of an export, and of the commands that it takes, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.access.chain import Compiled
from gateway.inspect.report import (
    GATEWAY,
    QUIRKS,
    Restriction,
    Waypoint,
)
from gateway.protocol.commands import RefusedCommand
from gateway.protocol.export import Export, View
from gateway.protocol.table import ALL_COMMANDS, Row, Table
from gateway.wire.constants import Cmd, CmdFlag
from gateway.wire.constants import TransmissionFlag as Flag


def steps_of(export: Export, first: View, agreed: Compiled) -> Iterator[Waypoint]:
    """Give the export as it is after the quirks, the gateway, and each policy that changes something."""
    yield Waypoint(QUIRKS, export.size, export.flags, 0, export.block_sizes, export.description)
    yield _step(GATEWAY, first)
    for stage in reversed(agreed.stages):
        before, after = (_step(stage.placed.name, view) for view in (stage.behind, stage.view))
        if after != before:
            yield after


def _step(name: str, view: View) -> Waypoint:
    return Waypoint(name, view.size, view.flags, view.base, view.block_sizes, view.description)


def restrictions_on(agreed: Compiled, command: Cmd) -> Iterator[Restriction]:
    """Say what policies do to a command: all together by their table, or one by one if hooks come between."""
    if command not in agreed.hooked:
        yield from restrictions_of(agreed.table[command])
        return
    for stage in agreed.stages:
        yield from restrictions_of(stage.table[command], f" at {stage.placed.name}")


def restrictions_of(row: Row, where: str = "") -> Iterator[Restriction]:
    """Say in words what a row of a table says. `where` follows them, and says whose offsets they are."""

    def refused(what: str, why: RefusedCommand) -> Restriction:
        return Restriction(what + where, why.error.name, why.text)

    if row.refused is not None:
        yield refused("always", row.refused)
    if row.longest is not None and row.too_long is not None:
        yield refused(f"longer than {row.longest} bytes", row.too_long)
    for barred in row.barred:
        yield refused(f"bytes {barred.start} to {barred.end - 1}", barred.refused)
    for flags, why in row.refused_flags:
        yield refused(f"with {_names(flags)}", why)
    dropped = [flag for flag in CmdFlag if not flag & row.kept_flags]
    if dropped:
        yield Restriction(f"{_names(sum(dropped))} is not sent on{where}")
    if row.added_flags:
        yield Restriction(f"{_names(row.added_flags)} is always sent on{where}")


def _names(flags: int) -> str:
    return ", ".join(flag.name or "" for flag in CmdFlag if flag & flags)


def would_show(agreed: Compiled) -> Iterator[str]:
    """Say what observed policies would show differently."""
    yield from agreed.would
    if agreed.shadow is None:
        return
    now, then = agreed.view, agreed.shadow.view
    for verb, flags in (("hidden", now.flags & ~then.flags), ("shown", then.flags & ~now.flags)):
        if flags:
            names = ", ".join(flag.name or "" for flag in Flag if flag & flags)
            yield f"flags that would be {verb}: {names}"
    if then.block_sizes != now.block_sizes:
        sizes = then.block_sizes
        yield f"block sizes would be {sizes.minimum}, {sizes.preferred}, {sizes.maximum}"
    hidden = sorted(now.contexts - then.contexts)
    if hidden:
        yield f"contexts that would be hidden: {', '.join(hidden)}"


def would_restrict(agreed: Compiled) -> Mapping[Cmd, tuple[Restriction, ...]]:
    """Say what observed policies would refuse beyond what is refused already."""
    if agreed.shadow is None:
        return {}
    return dict(_beyond(agreed.table, agreed.shadow.table))


def _beyond(now: Table, then: Table) -> Iterator[tuple[Cmd, tuple[Restriction, ...]]]:
    for command in sorted(ALL_COMMANDS):
        said = tuple(restrictions_of(now[command]))
        more = tuple(each for each in restrictions_of(then[command]) if each not in said)
        if more:
            yield command, more
