"""nbd-gateway sessions: who is connected to a running gateway, and what each waits for."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def sessions(
    *,
    export: str | None = None,
    upstream: str | None = None,
    who: str | None = None,
    stuck: bool = False,
    json: Annotated[bool, Parameter(name="--json")] = False,
    watch: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show who is connected to a running gateway, what each has done, and what it waits for.

    :param export: Only those of this export.
    :param upstream: Only those on this upstream.
    :param who: Only those in whose identity these letters are (an address, a name of a certificate).
    :param stuck: Only those in which nothing has gone on for 5 seconds, though there is something to do.
    :param json: As JSON, one object a line (docs/status.md has the names).
    :param watch: Again and again, every so many seconds.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.showing import all_pages, show

    said = {"export": export, "upstream": upstream, "who": who, "stuck": stuck or None}
    arguments = {key: value for key, value in said.items() if value is not None}
    return show(
        lambda: {"sessions": all_pages(config, socket, "sessions", "session", arguments)},
        lambda shown: sessions_table(shown["sessions"]),
        as_json=json,
        watch=watch,
    )


def sessions_table(sessions: list[dict[str, Any]]) -> str:
    """Give a table of sessions."""
    from gateway.cli.showing import duration, requests, size, table, waits

    return table(
        (
            "SESSION",
            "EXPORT",
            "UPSTREAM",
            "WHO",
            "FOR",
            "REQUESTS",
            "READ",
            "WRITTEN",
            "ERRORS",
            "UNDER WAY",
            "WAITS FOR",
        ),
        (
            (
                each["session"],
                each["export"] or '""',
                each["upstream"],
                each["who"],
                duration(each["seconds"]),
                requests(each),
                size(each["bytes"].get("READ", 0)),
                size(each["bytes"].get("WRITE", 0)),
                sum(each["errors"].values()),
                each["in_flight"],
                waits(each),
            )
            for each in sessions
        ),
    )
