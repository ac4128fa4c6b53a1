"""nbd-gateway demo: what the gateway is for, on a server that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.demo import Face


def demo() -> int:
    """Show a server with an old one's faults, direct and through the gateway; then serve it.

    Needs nothing but this program. Ctrl-C ends it.
    """
    import trio

    from gateway.cli import complain
    from gateway.demo import demo as run
    from gateway.log.standard_error import taken_over
    from gateway.upstreams import StartError

    with taken_over():
        try:
            return trio.run(run, show)
        except StartError as error:
            complain(str(error))
            return 1


def show(direct: Face, through: Face) -> None:
    """Print both faces side by side, and how to look for oneself."""
    from rich.console import Console
    from rich.table import Table

    from gateway.wire.constants import TransmissionFlag

    table = Table(title="A server that behaves as qemu 3.0.0 does", title_justify="left")
    table.add_column("what a client sees")
    table.add_column(f"direct\n{direct.uri}")
    table.add_column(f"through nbd-gateway\n{through.uri}")
    wrong = {
        TransmissionFlag.CAN_MULTI_CONN: "set  (a lie: it means CACHE)",
        TransmissionFlag.SEND_CACHE: "not set",
    }
    for flag in TransmissionFlag:
        if flag & (direct.flags | through.flags):
            ours = "set" if flag & through.flags else "not set"
            theirs = "set" if flag & direct.flags else "not set"
            changed = ours != theirs
            table.add_row(
                flag.name,
                wrong.get(flag, theirs) if changed else theirs,
                f"[bold green]{ours}[/]" if changed else ours,
            )
    table.add_section()
    table.add_row("so a client uses", _connections(direct), _connections(through))
    table.add_row("writes, then reads back", _read_back(direct), _read_back(through))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\nServing until Ctrl-C. From another terminal:\n\n  nbdinfo {through.uri}\n"
        f"  nbdinfo {direct.uri}     (the same server, direct)",
        soft_wrap=True,
    )


def _connections(face: Face) -> str:
    return "several connections" if face.multi_conn else "one connection"


def _read_back(face: Face) -> str:
    from gateway.demo import NEW

    said = face.read_back.decode(errors="replace")
    return f"[green]{said}[/]" if face.read_back == NEW else f"[bold red]{said}: corrupted[/]"
