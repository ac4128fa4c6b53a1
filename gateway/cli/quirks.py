"""nbd-gateway quirks: the catalogue of what servers get wrong, and what is done about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from gateway.quirks import Proof

INTRODUCTION = """\
# Quirks: what servers get wrong, and what the gateway does about it

The gateway recognises the faults of servers on the wire, on every connection, and mends them without being
told. `quirks` in `[upstream.NAME]` names them by hand (`[]`: none). `nbd-gateway probe URI` says which of them
a server has. This page is what `nbd-gateway quirks --markdown` prints.

Each quirk says how it is known: it was seen in the real program, in the versions named; it was read in its
source, and not tried; or others tell of it, mostly in the commit that mends it. Most of what was seen in
programs of Debian 12 and 13 is seen again by `tests/interop/test_seen.py` and `tests/trixie/test_seen.py`.

Not every old program can be told from a newer one. Each quirk says what a *wrong yes* costs: the price where
the gateway takes a server for one that has the quirk, and it has not.
"""


def quirks(
    *, as_json: Annotated[bool, Parameter(name="--json")] = False, markdown: bool = False
) -> int:
    """List the quirks of servers that the gateway recognises and mends.

    :param as_json: Print one JSON object, for programs.
    :param markdown: Print the page docs/quirks.md.
    """
    from gateway.cli import UsageError
    from gateway.quirks import catalogue
    from gateway.quirks.everywhere import EVERYWHERE

    if as_json and markdown:
        raise UsageError("expected --json or --markdown, got both")
    if as_json:
        import json

        print(json.dumps(document(), indent=2))
        return 0
    if markdown:
        print(page(), end="")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("quirk", "who", "what", "without the gateway"):
        table.add_column(title)
    for quirk in catalogue().values():
        risk = "DATA AT RISK: " if quirk.risks_data else ""
        table.add_row(quirk.name, quirk.affected, quirk.summary, risk + quirk.consequence)
    console = Console()
    console.print(table)
    console.print("\nMended for everyone, without recognising anybody:")
    table = Table()
    for title in ("", "who", "does what", "and the gateway"):
        table.add_column(title)
    for known in EVERYWHERE:
        table.add_row(known.number, known.peer, known.does, known.here)
    console.print(table)
    return 0


def document() -> dict[str, object]:
    """Give the catalogue as JSON has it."""
    from gateway.quirks import catalogue
    from gateway.quirks.everywhere import EVERYWHERE

    facts = ("name", "affected", "summary", "consequence", "risks_data")
    return {
        "quirks": [
            {fact: getattr(quirk, fact) for fact in facts}
            | {"links": [*quirk.links], "proof": _proof(quirk.proof)}
            for quirk in catalogue().values()
        ],
        "everywhere": [
            {fact: getattr(known, fact) for fact in ("number", "peer", "does", "here")}
            | {"proof": _proof(known.proof)}
            for known in EVERYWHERE
        ],
    }


def _proof(proof: Proof) -> dict[str, str]:
    return {"how": proof.how.name.lower(), "where": proof.where}


def page() -> str:
    """Give docs/quirks.md."""
    import importlib

    from gateway.quirks import catalogue
    from gateway.quirks.everywhere import EVERYWHERE

    lines = [INTRODUCTION]
    for quirk in catalogue().values():
        module = importlib.import_module(f"gateway.quirks.{quirk.name.replace('-', '_')}")
        text = (module.__doc__ or "").strip().partition("\n")[2].strip()
        lines += [
            f"## `{quirk.name}`",
            "",
            f"- affected: {quirk.affected}",
            f"- what: {quirk.summary}",
            f"- without the gateway: {quirk.consequence}"
            + (" (**data at risk**)" if quirk.risks_data else ""),
            f"- known how: {quirk.proof}",
            "- evidence: " + ", ".join(f"<{link}>" for link in quirk.links),
            "",
            text,
            "",
        ]
    lines += [
        "## Mended for everyone",
        "",
        "The gateway copes with these whoever it talks to, and has to recognise nobody for it. The",
        "numbers are those of comments and tests: S stands for qemu's server, C for its client, N for",
        "nbd-server, L for nbd-client and the kernel, K for nbdkit, B for libnbd.",
        "",
        "| | who | does what | and the gateway | known how |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {k.number} | {k.peer} | {k.does} | {k.here} | {k.proof} |" for k in EVERYWHERE),
        "",
    ]
    return "\n".join(lines)
