"""Every dialect of an upstream with every dialect of a client: what the tests run, and the table in the docs.

`python -m tests.sessions.matrix` prints the table for docs/behaviour.md.
"""

from __future__ import annotations

from gateway.protocol.export import Export, offer, view_of
from gateway.scan.plan import plan
from gateway.wire.constants import Cmd
from gateway.wire.constants import TransmissionFlag as Flag

DIALECTS = ("oldstyle", "EXPORT_NAME", "simple", "structured", "extended")
"""By greeting, by option, by framing: each has what the ones before it have, and more."""

COMMANDS = (Cmd.READ, Cmd.WRITE, Cmd.BLOCK_STATUS)


def structured(dialect: str) -> bool:
    return dialect in ("structured", "extended")


def link_dialect(upstream: str, client: str) -> str:
    """How the gateway speaks with an upstream on behalf of a client: nothing is asked for that the client
    does not want, so that as little as possible has to be translated.
    """
    if not structured(upstream) or not structured(client):
        return "simple"
    return "structured" if "structured" in (upstream, client) else "extended"


def cell(upstream: str, client: str) -> str:
    """Say how commands go between two dialects."""
    link = link_dialect(upstream, client)
    export = Export(
        2**30, int(Flag.HAS_FLAGS), structured=structured(link), extended=link == "extended"
    )
    promised = offer(view_of(export), structured=structured(client), extended=client == "extended")
    ways = plan(promised, export).ways
    return ways[Cmd.READ].handling.value


def table() -> str:
    """Give the table as Markdown: upstreams down, clients across."""
    lines = [
        "| upstream \\ client | " + " | ".join(DIALECTS) + " |",
        "|---|" + "---|" * len(DIALECTS),
    ]
    for upstream in DIALECTS:
        cells = " | ".join(cell(upstream, client) for client in DIALECTS)
        lines.append(f"| {upstream} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
