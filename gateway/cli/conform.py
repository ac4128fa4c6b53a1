"""nbd-gateway conform: does a server keep its promises?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gateway.cli.asking import Timeout

if TYPE_CHECKING:
    from gateway.inspect.conform import Conformity, Finding

BROKEN = 3
"""Exit status if a promise is broken: a client that believes it may lose data."""


def conform(
    uri: str,
    /,
    *,
    destroy: bool = False,
    timeout: Timeout = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Try whether a server keeps its promises, on a scratch export whose content is OVERWRITTEN.

    What it promises by its transmission flags, and what every server has to do, is tried out, and a table says
    of each promise whether it is kept, where it is written, and if not what came instead. Of a read-only export
    only what reads is tried. The server has to take connections one after another, and several at once
    if it sets CAN_MULTI_CONN.
    Exit status 3 if a promise is broken.

    :param uri: The export: an NBD URI, or an embedded server (memory:1G, file:disk.img, legacy:qemu-3.0).
    :param destroy: Yes, what is on the export may be overwritten.
    :param timeout: Seconds that all of it may take. Default: 30 for each request, 300 for each promise.
    :param as_json: Print one JSON object, for programs.
    """
    import json
    from functools import partial

    from gateway.cli import UsageError
    from gateway.cli.asking import TookTooLong, failed, found_within, target_of
    from gateway.inspect.conform import CannotConform
    from gateway.inspect.conform import conform as try_out

    target = target_of(uri)
    if not destroy:
        raise UsageError(
            f"{target}: the content of this export will be overwritten; say --destroy if nobody needs it"
        )
    try:
        found = found_within(timeout, partial(try_out, target))
    except (CannotConform, TookTooLong) as error:
        return failed(target, error, as_json=as_json)
    if as_json:
        print(json.dumps(_document(found), indent=2))
    else:
        _show(found)
    return 0 if found.kept else BROKEN


def _document(found: Conformity) -> dict[str, object]:
    from gateway.cli.probe import flag_names

    sizes = found.export.block_sizes
    return {
        "uri": str(found.uri),
        "kept": found.kept,
        "size": found.export.size,
        "flags": flag_names(found.export.flags).split(),
        "structured": found.export.structured,
        "block_sizes": None if sizes is None else [sizes.minimum, sizes.preferred, sizes.maximum],
        "promises": [_finding_document(finding) for finding in found.findings],
    }


def _finding_document(finding: Finding) -> dict[str, object]:
    from gateway.inspect.conform import CheckResult

    broken = finding.verdict is CheckResult.BROKEN
    return {
        "name": finding.promise.name,
        "promise": finding.promise.sentence,
        "section": finding.promise.section,
        "verdict": finding.verdict.value,
        "expected": finding.expected if broken else None,
        "came": finding.came if broken else None,
        "notes": [*finding.notes],
    }


_STYLES = {"pass": "green", "fail": "bold red", "not offered": "dim"}


def _show(found: Conformity) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gateway.wire.handshake import printable

    console = Console()
    table = Table(title=Text(f"{found.uri}"), title_justify="left")
    table.add_column("promise", ratio=3)
    table.add_column("", no_wrap=True)
    table.add_column("section of proto.md", ratio=2)
    table.add_column("what was seen", ratio=4)
    for finding in found.findings:
        verdict = finding.verdict.value
        seen = [*finding.notes]
        if finding.expected:
            seen = [f"expected: {finding.expected}", f"came: {finding.came}", *seen]
        table.add_row(
            Text(finding.promise.sentence),
            Text(verdict, _STYLES[verdict]),
            Text(finding.promise.section),
            Text("\n".join(printable(line) for line in seen)),
        )
    console.print(table)
    count = Counter(finding.verdict.value for finding in found.findings)
    console.print(", ".join(f"{count[verdict]} {verdict}" for verdict in _STYLES), highlight=False)
