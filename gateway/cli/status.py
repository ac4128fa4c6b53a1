"""nbd-gateway status: a running gateway on one screen."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def status(
    *,
    json: Annotated[bool, Parameter(name="--json")] = False,
    watch: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show what a running gateway is doing: its listeners, upstreams and sessions, and what is not as usual.

    :param json: As JSON, one object a line (docs/status.md has the names).
    :param watch: Again and again, every so many seconds.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.showing import asked, show

    return show(lambda: asked(config, socket, "status", {}), _text, as_json=json, watch=watch)


def _text(shown: dict[str, Any]) -> str:
    from gateway.cli.showing import duration, lines_of, requests, size, table
    from gateway.plural import plural

    totals = shown["totals"]
    stuck = f", {shown['stuck_sessions']} of them stuck" if shown["stuck_sessions"] else ""
    pump = "with" if shown["compiled_pump"] else "without"
    facts: list[tuple[str, object]] = [
        ("version", f"{shown['version']} ({pump} the compiled pump)"),
        ("up for", f"{duration(shown['uptime_seconds'])}, since {shown['started']}"),
        ("sessions", f"{shown['sessions']}{stuck}; {totals['sessions']} since the start"),
        ("requests", requests(totals)),
        (
            "read, written",
            f"{size(totals['bytes'].get('READ', 0))}, {size(totals['bytes'].get('WRITE', 0))}",
        ),
        (
            "errors",
            ", ".join(f"{what} {times}" for what, times in totals["errors"].items()) or "none",
        ),
    ]
    if shown["draining"]:
        facts.append(("shuts down", _waits_for(shown)))
    if older := shown["older"]:
        clients = f"{plural(older['clients'], 'client')}, {older['sessions']} of them in sessions"
        facts.append(("before us", f"process {older['pid']} ({older['version']}) has {clients}"))
    if fleet := shown["fleet"]:
        facts.append(
            ("in a fleet", f"{fleet['gateway']}, home of {plural(fleet['homes'], 'disk')}")
        )
        if fleet["drained"] is not None:
            from gateway.cli.fleet import drained_in_words

            facts.append(("is drained", drained_in_words(fleet["drained"])))
    for each in shown["pauses"]:
        facts.append(("paused", f"{each['export']!r} by {each['by']} since {each['since']}"))
    if (more := len(shown["paused"]) - len(shown["pauses"])) > 0:
        facts.append(("paused", f"and {more} more: nbd-gateway exports"))
    if shown["switched"]:
        facts.append(("switched", ", ".join(f"{a} to {b}" for a, b in shown["switched"].items())))
    if shown["tickets"] is not None:
        facts.append(("tickets", shown["tickets"]))
    if shown["disks_with_losses_untold"]:
        facts.append(
            (
                "losses",
                f"of {plural(shown['disks_with_losses_untold'], 'disk')}: nbd-gateway losses",
            )
        )
    facts += [("certificates", each["what"]) for each in shown["certificates"]]
    listeners = table(
        ("LISTENER", "TLS", "CLIENTS", "AT MOST", ""),
        (
            (
                e["listener"],
                e["tls"],
                e["clients"],
                e["most_clients"],
                _drained(e),
            )
            for e in shown["listeners"]
        ),
    )
    tables = [lines_of(facts), listeners, upstreams_table(shown["upstreams"])]
    if shown["stuck"]:
        tables.append(_stuck_table(shown))
    if "workers" in shown:
        tables.append(_workers_table(shown["workers"]))
    return "\n\n".join(tables)


def _workers_table(workers: list[dict[str, Any]]) -> str:
    from gateway.cli.showing import table

    return table(
        ("WORKER", "PID", "SESSIONS", "RESTARTS", ""),
        (
            (
                each["worker"],
                each["pid"] or "-",
                each["sessions"],
                each["restarts"],
                "" if each["serves"] else "is being started",
            )
            for each in workers
        ),
    )


def _stuck_table(shown: dict[str, Any]) -> str:
    from gateway.cli.showing import duration, table

    stuck = table(
        ("STUCK", "EXPORT", "UPSTREAM", "CLIENT", "FOR", "WAITS FOR"),
        (
            (
                each["session"],
                each["export"] or '""',
                each["upstream"],
                each["client"],
                duration(each["silent_seconds"] or 0),
                f"{each['waits_for']}: {each['why']}",
            )
            for each in shown["stuck"]
        ),
    )
    more = shown["stuck_sessions"] - len(shown["stuck"])
    return f"{stuck}\nand {more} more: nbd-gateway sessions --stuck" if more > 0 else stuck


def _waits_for(shown: dict[str, Any]) -> str:
    """Say what a gateway that shuts down still waits for."""
    from gateway.cli.showing import duration

    left = shown["sessions_end_in_seconds"]
    until = "have been told to end" if left is None else f"may go on for {duration(left)}"
    named = [
        f"{e['client']} ({e['export'] or 'default export'})" for e in shown["waits_for_sessions"]
    ]
    more = shown["sessions"] - len(named)
    who = ", ".join([*named, *([f"and {more} more"] if more > 0 else [])]) or "nobody"
    return f"no export is opened any more; sessions {until}: {who}"


def _drained(listener: dict[str, Any]) -> str:
    from gateway.cli.showing import duration

    left = listener["sessions_end_in_seconds"]
    ends = "" if left is None else f", sessions end in {duration(left)}"
    return f"drained{ends}" if listener["drained"] else ""


def upstreams_table(upstreams: list[dict[str, Any]]) -> str:
    """Give a table of upstreams."""
    from gateway.cli.showing import table

    return table(
        ("UPSTREAM", "STATE", "SESSIONS", "CONNECTIONS", "REPAIRED", ""),
        (
            (
                each["upstream"],
                each["state"],
                each["sessions"],
                each["connections"],
                ", ".join(each["repaired"]) or "-",
                each["why"] or "",
            )
            for each in upstreams
        ),
    )
