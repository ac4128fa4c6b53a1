"""nbd-gateway probe: what a server is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gateway.cli.asking import Timeout
from gateway.plural import plural

if TYPE_CHECKING:
    from gateway.inspect.probe import Probe, Probed

MAX_MISNAMED = 8
"""How many names are shown of exports that nobody can ask for."""

AT_RISK = 3
"""Exit status if a client that goes to the server directly may lose data."""


def probe(
    uri: str,
    /,
    *,
    every_export: Annotated[bool, Parameter(name="--list")] = False,
    transmit: bool = False,
    timeout: Timeout = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Say what a server is, what is wrong with it, and what a client would see of it through the gateway.

    The server is asked in its option phase and left with ABORT, which one-client servers survive. One that
    knows no INFO (oldstyle, or very old) has its export opened: if it serves one client only, it is gone then.
    Exit status 3 if something was found that puts data at risk.

    :param uri: The server: an NBD URI, or an embedded one (memory:1G, file:disk.img, legacy:qemu-3.0).
    :param every_export: Ask about every export that the server lists.
    :param transmit: Open the exports, too, and read a few places of each.
    :param timeout: Seconds that all of it may take. Default: as long as the server answers.
    :param as_json: Print one JSON object, for programs.
    """
    import json
    from functools import partial

    from gateway.cli.asking import TookTooLong, failed, found_within, target_of
    from gateway.inspect.probe import CannotProbe
    from gateway.inspect.probe import probe as ask

    target = target_of(uri)
    try:
        found = found_within(
            timeout, partial(ask, target, every_export=every_export, transmit=transmit)
        )
    except (CannotProbe, TookTooLong) as error:
        return failed(target, error, as_json=as_json)
    if as_json:
        print(json.dumps(_document(found), indent=2))
    else:
        _show(found)
    return AT_RISK if found.risks_data else 0


def flag_names(flags: int) -> str:
    """Give transmission flags by their names, those without one as a number."""
    from gateway.wire.constants import TransmissionFlag

    known = [flag.name or "" for flag in TransmissionFlag if flag & flags]
    unknown = flags & ~sum(TransmissionFlag)
    return " ".join([*known, *([f"{unknown:#x}"] if unknown else [])])


def _style(export: Probed) -> str:
    return export.evidence.style.name.lower().replace("_", " ")


def _document(found: Probe) -> dict[str, object]:
    programs = [_program_document(export) for export in found.exports]
    names = {quirk.name for export in found.exports for quirk in export.quirks}
    return {
        "uri": str(found.uri),
        "program": programs[0] if programs else None,
        "quirks": sorted(names),
        "risks_data": found.risks_data,
        "tls_required": found.tls_required,
        "listed": None if found.listed is None else [export.name for export in found.listed],
        "misnamed": [*found.misnamed],
        "refused": [{"name": name, "why": why} for name, why in found.refused],
        "exports": [_export_document(export) for export in found.exports],
    }


def _export_document(export: Probed) -> dict[str, object]:
    sizes = export.evidence.block_sizes
    return {
        "name": export.name,
        "program": _program_document(export),
        "quirks": [quirk.name for quirk in export.quirks],
        "risks_data": export.risks_data,
        "style": _style(export),
        "structured": export.evidence.structured,
        "extended": export.extended,
        "size": export.export.size,
        "flags": flag_names(export.evidence.flags).split(),
        "flags_through": flag_names(export.through).split(),
        "block_sizes": None if sizes is None else [sizes.minimum, sizes.preferred, sizes.maximum],
        "contexts": [*export.contexts],
        "notes": [*export.notes],
        "reading": None
        if export.reading is None
        else {"places": export.reading.places, "wrong": [*export.reading.wrong]},
    }


def _program_document(export: Probed) -> dict[str, object]:
    program = export.program
    return {"name": program.name, "versions": program.versions, "reasons": [*program.reasons]}


def _show(found: Probe) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gateway.wire.handshake import printable

    console = Console(markup=False, highlight=False)
    names = "it will not say" if found.listed is None else f"{len(found.listed)}"
    console.print(f"{found.uri}: exports: {names}", soft_wrap=True)
    if found.misnamed:
        names = ", ".join(found.misnamed[:MAX_MISNAMED])
        more = "" if len(found.misnamed) <= MAX_MISNAMED else ", ..."
        text = f"{len(found.misnamed)} more, which nobody can ask for: their names are not UTF-8, or have NUL"
        console.print(f"{text}: {names}{more}", soft_wrap=True)
    if found.tls_required:
        console.print("it says nothing more without TLS: use nbds: in its URI")
    for name, why in found.refused:
        console.print(printable(f"{_title(name)} cannot be had: {why}"), soft_wrap=True)
    for export in found.exports:
        title = printable(_title(export.name))
        table = Table(title=Text(title), title_justify="left", show_header=False)
        for what, said in _rows(export):
            table.add_row(what, Text(printable(said)))  # for neither the terminal nor rich to obey
        console.print(table)


def _title(name: str) -> str:
    return f'"{name}"' if name else "the default export"


def _rows(export: Probed) -> Iterator[tuple[str, str]]:
    """Give what is known of an export, as rows: a property, and what it is."""
    program, evidence, sizes = export.program, export.evidence, export.evidence.block_sizes
    yield "program", f"{program.name} {program.versions}".strip()
    for reason in program.reasons:
        yield "", reason
    framing = "extended" if export.extended else "structured" if evidence.structured else "simple"
    yield "speaks", f"{_style(export)}, {framing} replies"
    yield "size", str(export.export.size)
    told = "none told" if sizes is None else f"{sizes.minimum}, {sizes.preferred}, {sizes.maximum}"
    yield "block sizes", told
    yield "contexts", " ".join(export.contexts) or "none"
    yield "flags, direct", flag_names(evidence.flags)
    yield "flags, through", flag_names(export.through)
    for quirk in export.quirks:
        risk = "DATA AT RISK: " if quirk.risks_data else ""
        yield f"quirk {quirk.name}", f"{risk}{quirk.consequence}"
    if not export.quirks:
        yield "quirks", "none"
    if export.reading is not None:
        wrong = [f"DATA AT RISK: {text}" for text in export.reading.wrong]
        for text in wrong or [f"{plural(export.reading.places, 'place')}, nothing wrong"]:
            yield "reading", text
    for note in export.notes:
        yield "note", note
