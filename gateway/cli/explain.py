"""nbd-gateway explain: how each command of an export goes, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.explain import Explanation


def explain(path: Path = Path("gateway.toml"), /, *, export: str = "") -> int:
    """Show how each command to an export goes, for every kind of client, and why.

    The upstream is asked; a server that serves one connection only and then ends (qemu-nbd without -t) ends.

    :param path: The configuration. Default: gateway.toml.
    :param export: The export's name. Default: the default export.
    """
    import sys
    from datetime import datetime

    import trio

    from gateway.app import StartError
    from gateway.cli import complain
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError, load
    from gateway.explain import CannotExplain
    from gateway.explain import explain as ask
    from gateway.identity import NOBODY
    from gateway.policy import Client

    try:
        config = load(path, vocabulary())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        client = Client(NOBODY, datetime.now().astimezone())
        found = trio.run(ask, config, export, client)
    except (StartError, CannotExplain) as error:
        complain(str(error))
        return 1
    show(found)
    return 0


def show(found: list[Explanation]) -> None:
    """Print what was found, for people."""
    from rich.console import Console
    from rich.table import Table

    from gateway.wire.constants import TransmissionFlag

    console = Console()
    first = found[0]
    flags = TransmissionFlag(first.promised.flags)
    listed = ", ".join(flag.name or "" for flag in flags)
    console.print(f"size {first.export.size} bytes; {listed}", highlight=False, soft_wrap=True)
    sizes = first.promised.block_sizes
    told = f"{sizes.minimum}, {sizes.preferred}, {sizes.maximum}"
    console.print(
        f"block sizes {told}; quirks: {', '.join(first.quirks) or 'none'}", highlight=False
    )
    table = Table(show_lines=False)
    table.add_column("command")
    for each in found:
        table.add_column(f"{each.client} client\n{each.link} server")
    for command in first.ways:
        table.add_row(command.name, *(each.ways[command].route.value for each in found))
    console.print(table)
    reasons = {
        (command.name, str(each.client), way.reason): way
        for each in found
        for command, way in each.ways.items()
        if way.reason
    }
    told_of: dict[tuple[str, str], list[str]] = {}
    for name, client, reason in reasons:
        told_of.setdefault((client, reason), []).append(name)
    for (client, reason), names in told_of.items():
        console.print(
            f"{client} client, {', '.join(names)}: {reason}", highlight=False, soft_wrap=True
        )
