"""nbd-gateway exports: what a running gateway serves, and what was done with it."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def exports(
    *,
    json: Annotated[bool, Parameter(name="--json")] = False,
    watch: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show the exports of a running gateway: where each is, who uses it, and what was done since the start.

    Exports of a pattern are shown once they were used; of a gateway's first thousand each by itself, the others
    together. Of those that "nbd-gateway export add" has made, the ones are shown that are in use.

    :param json: As JSON, one object a line (docs/status.md has the names).
    :param watch: Again and again, every so many seconds.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.showing import all_pages, show

    return show(
        lambda: {"exports": all_pages(config, socket, "exports", "export", {})},
        lambda shown: _table(shown["exports"]),
        as_json=json,
        watch=watch,
    )


def _state(each: dict[str, Any]) -> str:
    paused = f"paused by {each['paused_by']} since {each['paused_since']}"
    words = ((each["paused"], paused), (each["switched"], "switched"), (each["ticket"], "ticket"))
    return ", ".join(text for is_so, text in words if is_so)


def _table(exports: list[dict[str, Any]]) -> str:
    from gateway.cli.showing import requests, size, table

    return table(
        (
            "EXPORT",
            "UPSTREAM",
            "SESSIONS",
            "SINCE START",
            "REQUESTS",
            "READ",
            "WRITTEN",
            "ERRORS",
            "",
        ),
        (
            (
                each["export"] or '""',
                each["upstream"] or "-",
                each["sessions"],
                each["totals"]["sessions"],
                requests(each["totals"]),
                size(each["totals"]["bytes"].get("READ", 0)),
                size(each["totals"]["bytes"].get("WRITE", 0)),
                sum(each["totals"]["errors"].values()),
                _state(each),
            )
            for each in exports
        ),
    )
