"""nbd-gateway demo: what the gateway is for, on a server that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.app.demo import Seen, TrialOutcome


def demo() -> int:
    """Show a server with an old one's faults, direct and through the gateway; then serve it.

    Needs nothing but this program. Ctrl-C ends it.
    """
    import trio

    from gateway.app.demo import demo as run
    from gateway.cli import complain
    from gateway.log.standard_error import taken_over
    from gateway.upstream.configured import StartError

    with taken_over():
        try:
            return trio.run(run, show)
        except StartError as error:
            complain(str(error))
            return 1


def show(seen: Seen) -> None:
    """Print both sides beside each other, and how users can look for themselves."""
    from rich.console import Console
    from rich.table import Table

    from gateway.wire.constants import TransmissionFlag

    table = Table(title="A server that behaves as qemu-nbd 3.0.0 does", title_justify="left")
    table.add_column("what a client is told")
    table.add_column(f"direct\n{seen.direct}")
    table.add_column(f"through nbd-gateway\n{seen.through}")
    for flag in TransmissionFlag:
        if flag & (seen.flags_direct | seen.flags_through):
            ours = "set" if flag & seen.flags_through else "not set"
            theirs = "set" if flag & seen.flags_direct else "not set"
            meant = "  (CACHE is meant)" if flag is TransmissionFlag.CAN_MULTI_CONN else ""
            table.add_row(
                flag.name,
                theirs if ours == theirs else f"{theirs}{meant}",
                ours if ours == theirs else f"[bold green]{ours}[/]",
            )
    table.add_section()
    table.add_row("[bold]what it meets[/]")
    for trial, direct, through in seen.outcomes:
        table.add_row(trial.what, _outcome(direct), _outcome(through))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nSo does the real program, but for the last line, a worst case (legacy:qemu-3.0-incoherent).\n"
        "Bit 8 promises that all connections see one disk, and nobody had checked it. Measured, they did.",
        soft_wrap=True,
    )
    console.print(
        "\nIn a browser, what it is doing (one client at work there is slow: which, and why?):\n\n"
        f"  [bold]{seen.page}[/]",
        soft_wrap=True,
    )
    console.print(
        f"\nThe same in a terminal (`status`, `sessions`, `exports` and others know the socket as well):\n\n"
        f"  nbd-gateway top --socket {seen.control}",
        soft_wrap=True,
    )
    console.print(
        f"\nServing until Ctrl-C. From another terminal:\n\n  nbdcopy {seen.through} null:\n"
        f"  nbdinfo {seen.through}\n"
        f"  nbdcopy {seen.direct} null:     (hangs: the same server, direct)",
        soft_wrap=True,
    )


def _outcome(outcome: TrialOutcome) -> str:
    style = "green" if outcome.good else "bold red"
    return f"[{style}]{outcome.text}[/]"
