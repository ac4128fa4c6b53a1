"""nbd-gateway explain: what a client gets that asks for an export, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gateway.cli.asking import Timeout
from gateway.cli.explained import document, in_json
from gateway.plural import plural

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.config import Connections
    from gateway.inspect.report import (
        ContextSaid,
        Explanation,
        HomeSaid,
        LimitSaid,
        Report,
        Restriction,
        Waypoint,
    )
    from gateway.upstream.coherence import Decision
    from gateway.wire.constants import Cmd
    from gateway.wire.handshake import BlockSizes

Say = Callable[[str], None]

NO_TEXT = "none"
"""Stands for a description that is not there."""

FILE_COLUMNS = 1000
"""How wide a table may be in a file or a pipe: no more policies than fit in there change flags."""


def explain(
    path: Path = Path("gateway.toml"),
    /,
    *,
    export: str = "",
    claims: Annotated[tuple[str, ...], Parameter(name="--as")] = (),
    address: Annotated[str | None, Parameter(name="--from")] = None,
    at: str | None = None,
    timeout: Timeout = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show what a client gets that asks for an export: by which rule, with which policies, what it is offered
    and who changed it, and how each command goes.

    The upstream is asked; a server that serves one connection only and then ends (qemu-nbd without -t) ends.
    What a gateway that runs has counted is not known: the answer is for a client that comes first.
    Exit status 1 if the client does not get the export.

    :param path: The configuration. Default: gateway.toml.
    :param export: The export's name, as the client says it. Default: the default export.
    :param claims: Who the client is; may be given several times: cn=, issuer-cn=, san-dns=, san-uri=,
        fingerprint=, psk-user=, unix-user= (name or number), tls.
    :param address: The IP address that it comes from.
    :param at: When, in local time: 2026-11-21T12:00. Default: now.
    :param timeout: Seconds that all of it may take. Default: as the configuration says of the upstream.
    :param as_json: Print one JSON object, for programs.
    """
    import json
    import sys
    from functools import partial

    from gateway.access.loading import PolicyError
    from gateway.cli import complain
    from gateway.cli.asking import TookTooLong, export_named, found_within
    from gateway.cli.claims import identity_of, time_of
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError, load
    from gateway.inspect.explain import PolicyBug
    from gateway.inspect.explain import explain as ask
    from gateway.policy import Client
    from gateway.upstream.configured import StartError

    export_named(export)
    client = Client(identity_of(claims, address), time_of(at), hypothetical=True)
    try:
        config = load(path, vocabulary())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        found = found_within(timeout, partial(ask, config, export, client))
    except (StartError, PolicyError, TookTooLong) as error:
        complain(str(error))
        return 1
    except PolicyBug as error:
        complain(f"a policy fails: {error}")
        return 1
    if as_json:
        print(json.dumps(document(found), indent=2))
    else:
        show(found)
    return 0 if found.refusal is None else 1


# --- For people


def show(found: Report) -> None:
    """Print what was found, for people."""
    from rich.console import Console

    from gateway.wire.constants import Rep, name_of
    from gateway.wire.handshake import printable, shown

    console = Console()
    if not console.is_terminal:
        console.width = FILE_COLUMNS

    def say(text: str) -> None:
        console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    client = found.client
    over = "over TLS" if client.identity.tls else "without TLS"
    say(f"client: {client.identity.describe()}, {over}, {client.at:%a %Y-%m-%d %H:%M}")
    _show_rules(found, say)
    if found.refusal is not None:
        say(f"denied: {found.why}")
        reply, text = name_of(Rep, found.refusal.reply), found.refusal.text
        say(f"the client is told {reply}{', in these words' if text == found.why else f': {text}'}")
        if found.disconnect:
            say("sessions that are open are ended")
        return
    _show_chain(found, say)
    best = found.views[-1]  # the one with extended headers shows all that there is
    assert found.grant is not None
    route = found.grant.route
    places = f" ({' or '.join(found.uris)})" if found.uris else ""
    say(f"upstream: {route.upstream}{places}, export {shown(route.upstream_name)}")
    if found.home is not None:
        say(f"home: {_home_words(found.home)}")
    if found.gone:
        framings = ", ".join(str(each.client) for each in found.views)
        say(f"the server takes no other connection, and may be gone now: {found.gone}")
        say(f"so what follows is known for clients with {framings} headers alone")
    say(f"quirks: {', '.join(best.quirks) or 'none'}")
    say(f"connections: {_connection_words(found.wanted, best.connections)}")
    for line in _sizes(best):
        say(line)
    console.print(_flag_table(found.views))
    _show_contexts(found, say)
    console.print(_way_table(found.views))
    _show_reasons(found.views, say)
    for limit in found.limits:
        observed = "observed: " if limit.observed else ""
        say(f"{observed}limit: {'; '.join(_limit_words(limit))} ({limit.policy})")


def _show_rules(found: Report, say: Say) -> None:
    for label, why in found.tried:
        say(f"{label}: no: {why}")
    if found.grant is not None:
        if found.grant.rule:
            say(f"{found.grant.rule}: yes")
        elif not found.tried:
            say("there are no rules")


def _show_chain(found: Report, say: Say) -> None:
    assert found.grant is not None
    if found.grant.chain:
        say("policies, the first nearest to the client:")
    for placed in found.grant.chain:
        options = "".join(f" {key} = {in_json(value)}" for key, value in placed.options.items())
        say(f"  {placed.name}{' (observed)' if placed.observed else ''}{options}")
    best = found.views[-1]
    for why in dict.fromkeys((*found.would, *(w for each in found.views for w in each.would))):
        say(f"  observed: {why}")
    for line in _grouped(best.would_restrict):
        say(f"  observed: {line}")


def _home_words(home: HomeSaid) -> str:
    if home.in_fleet and home.of != "nowhere":
        whose = "all disks of its server" if home.of == "server" else "the disk"
        later = (
            "after one that has died, the next begins when the fence has cut that off"
            if home.fenced
            else "after one that has died, two writers are unlikely, and without a fence not impossible"
        )
        lives_on = (
            f"whoever came in at another gateway lives on for {home.lives_on:g} s without it"
            if home.lives_on
            else "all its clients end with it"
        )
        within = f"another one is there within {home.longest_wait:g} s, or nobody serves the disk"
        return (
            f"one gateway of the fleet (nbd-gateway fleet says which), for {whose}: {home.why}; {later};"
            f" {within}, and {lives_on}"
        )
    if home.in_fleet:
        return f"any gateway of the fleet: {home.why}"
    if home.worker is None:
        return f"none of {home.workers} workers alone: {home.why}"
    whose = "all disks of its server" if home.of == "server" else "the disk"
    return f"worker {home.worker} of {home.workers}, for {whose}: {home.why}"


def _connection_words(wanted: Connections, had: Decision) -> str:
    whose = "for all clients" if wanted.shared else "for each client"
    if had.reason:
        return f"{whose}, {had.reason}"
    return f"{'one' if had.count == 1 else had.count} {whose}"


def _quoted(text: str | None) -> str:
    """Give a server's text as it is: `say` escapes it."""
    return NO_TEXT if text is None else f'"{text}"'


def _sizes(view: Explanation) -> Iterable[str]:
    """Say size, place, block sizes and description, and who changed them."""
    told = view.told
    facts: dict[str, Callable[[Waypoint], str]] = {
        "size": lambda step: f"{step.size} bytes",
        "begins at": lambda step: f"{step.base} bytes",
        "block sizes": lambda step: _block_sizes(step.block_sizes),
        "description": lambda step: _quoted(step.description),
    }
    ends = {
        "size": f"{told.size} bytes",
        "begins at": f"{view.promised.base} bytes",
        "block sizes": _block_sizes(told.block_sizes),
        "description": _quoted(told.description),
    }
    for name, fact in facts.items():
        values = [(step.name, fact(step)) for step in view.steps] + [("whole blocks", ends[name])]
        changes = [f"{now} by {who}" for (_, was), (who, now) in pairwise(values) if now != was]
        if changes:
            yield f"{name} {ends[name]} ({values[0][1]} upstream, {', '.join(changes)})"
        elif ends[name] not in ("0 bytes", NO_TEXT):
            yield f"{name} {ends[name]}"


def _block_sizes(sizes: BlockSizes | None) -> str:
    return f"{sizes.minimum}, {sizes.preferred}, {sizes.maximum}" if sizes else "none"


def _flag_table(views: list[Explanation]) -> Table:
    """Show who changed which flag: a column for each that changed any, and the result."""
    from rich.table import Table
    from rich.text import Text

    from gateway.wire.constants import TransmissionFlag

    first, *later = views[-1].steps
    columns = [(first.name, first.flags)]
    columns += [
        (after.name, after.flags)
        for before, after in pairwise((first, *later))
        if after.flags != before.flags
    ]
    columns += _results(views)
    table = Table(show_lines=False)
    table.add_column("flag", no_wrap=True)
    for name, _ in columns:
        table.add_column(Text(name), overflow="fold")
    for flag in TransmissionFlag:
        cells = ["yes" if flags & flag else "-" for _, flags in columns]
        if "yes" in cells:
            table.add_row(flag.name, *cells)
    return table


def _results(views: list[Explanation]) -> Iterable[tuple[str, int]]:
    """Give the flags that clients are told, and which clients if they are not told the same."""
    framings: dict[int, list[str]] = {}
    for each in views:
        framings.setdefault(each.told.flags, []).append(str(each.client))
    if len(framings) == 1:
        return [("result", views[0].told.flags)]
    return [(", ".join(names), flags) for flags, names in framings.items()]


def _show_contexts(found: Report, say: Say) -> None:
    for context in found.contexts:
        say(f"context {_quoted(context.name)}: {_fate(context)}")
    if not found.contexts:
        say(f"contexts: none{f': {found.no_contexts}' if found.no_contexts else ''}")


def _fate(context: ContextSaid) -> str:
    if context.fails is not None:
        return f"refused by {context.by}: {context.fails}"
    if context.by is not None:
        return f"left out by {context.by}"
    return f"yes (observed: kept back by {context.would})" if context.would else "yes"


def _way_table(views: list[Explanation]) -> Table:
    from rich.table import Table

    table = Table("command", show_lines=False)
    for each in views:
        table.add_column(f"{each.client} client\n{each.link} server")
    for command in views[0].ways:
        table.add_row(command.name, *(each.ways[command].handling.value for each in views))
    return table


def _show_reasons(views: list[Explanation], say: Say) -> None:
    clients: dict[tuple[str, str], list[str]] = {}
    for view in views:
        commands: dict[str, list[str]] = {}
        for command, way in view.ways.items():
            if way.reason:
                commands.setdefault(way.reason, []).append(command.name)
        for reason, names in commands.items():
            clients.setdefault((", ".join(names), reason), []).append(str(view.client))
    for (names_said, reason), framings in clients.items():
        whose = "" if len(framings) == len(views) else f"{', '.join(framings)} client, "
        say(f"{whose}{names_said}: {reason}")
    for line in _grouped(views[-1].restrictions):
        say(line)


def _grouped(restrictions: Mapping[Cmd, tuple[Restriction, ...]]) -> Iterable[str]:
    """Say only once what holds for several commands."""
    commands: dict[str, list[str]] = {}
    for command, several in restrictions.items():
        for each in several:
            whose, _, text = each.why.partition(": ")
            why = text if whose.startswith(command.name) else each.why
            error = f": {each.error}, {why}" if each.error else ""
            commands.setdefault(f"{each.what}{error}", []).append(command.name)
    return [f"{', '.join(names)} {what}" for what, names in commands.items()]


def _limit_words(limit: LimitSaid) -> Iterable[str]:
    if limit.in_flight is not None:
        yield f"{plural(limit.in_flight, 'command')} in flight"
    for charge in limit.charges:
        yield f"{charge}, burst {charge.bucket.burst:.15g}"


# --- For programs
