"""nbd-gateway top: the sessions of a running gateway, live, the busiest first."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from gateway.cli import UsageError

WATCH_SECONDS = 2.0
"""How often somebody sees something new who has not said how often."""

SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "requests": lambda each: -each["requests_a_second"],
    "bytes": lambda each: -each["bytes_a_second"],
    "stuck": lambda each: -(each["silent_seconds"] or 0.0),
    "errors": lambda each: -sum(each["errors"].values()),
    "export": lambda each: each["export"],
}
"""How sessions are put in order."""


def top(
    *,
    sort: Literal["requests", "bytes", "stuck", "errors", "export"] = "requests",
    json: Annotated[bool, Parameter(name="--json")] = False,
    watch: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show the sessions of a running gateway, live, until Ctrl-C: what each does a second, and what it waits
    for.

    Sessions that are stuck come first, whatever the order. Where nobody looks (--json, or standard output is no
    terminal) they are shown once, with what each has done a second since it began; with --watch again and
    again.

    :param sort: What decides about the order of the others.
    :param json: As JSON, one object a line (docs/status.md has the names).
    :param watch: How often, in seconds. Default: 2, at a terminal.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    if watch is not None and not 0.2 <= watch <= 3600:
        raise UsageError("expected --watch of 0.2 to 3600 seconds")
    from gateway.cli import INTERRUPTED, complain
    from gateway.cli.running import NoAnswer
    from gateway.cli.showing import all_pages, is_terminal, show

    before: dict[str, tuple[float, dict[str, Any]]] = {}

    def look() -> dict[str, Any]:
        nonlocal before
        sessions = all_pages(config, socket, "sessions", "session", {})
        now = time.monotonic()
        for each in sessions:
            _rate(each, before.get(each["session"]), now)
        before = {each["session"]: (now, each) for each in sessions}
        sessions.sort(key=lambda each: (not each["stuck"], SORTS[sort](each)))
        return {"sessions": sessions}

    if json or not is_terminal():
        return show(look, lambda shown: _table(shown["sessions"]), as_json=json, watch=watch)
    from rich.live import Live
    from rich.text import Text

    try:
        with Live(auto_refresh=False, screen=True) as live:
            while True:
                live.update(Text(_table(look()["sessions"])), refresh=True)
                time.sleep(watch or WATCH_SECONDS)  # this process has nothing else to do
    except NoAnswer as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _rate(each: dict[str, Any], before: tuple[float, dict[str, Any]] | None, now: float) -> None:
    """Note what a session has done a second, since it was looked at before or else since it began."""
    from gateway.cli.showing import requests

    then, earlier = before if before is not None else (now - max(each["seconds"], 0.1), None)
    seconds = max(now - then, 0.001)
    done = requests(each) - (0 if earlier is None else requests(earlier))
    moved = _moved(each) - (0 if earlier is None else _moved(earlier))
    each["requests_a_second"] = round(done / seconds, 1)
    each["bytes_a_second"] = round(moved / seconds)


def _moved(each: dict[str, Any]) -> int:
    return int(each["bytes"].get("READ", 0) + each["bytes"].get("WRITE", 0))


def _table(sessions: list[dict[str, Any]]) -> str:
    from gateway.cli.showing import size, table, waits
    from gateway.plural import plural

    stuck = sum(each["stuck"] for each in sessions)
    head = f"{plural(len(sessions), 'session')}, {stuck} stuck\n\n"
    several = any("worker" in each for each in sessions)
    return head + table(
        (
            *(["WORKER"] if several else []),
            "SESSION",
            "EXPORT",
            "UPSTREAM",
            "WHO",
            "REQUESTS/S",
            "BYTES/S",
            "UNDER WAY",
            "ERRORS",
            "WAITS FOR",
        ),
        (
            (
                *([each["worker"]] if several else []),
                each["session"],
                each["export"] or '""',
                each["upstream"],
                each["who"],
                f"{each['requests_a_second']:.0f}",
                size(each["bytes_a_second"]),
                each["in_flight"],
                sum(each["errors"].values()),
                waits(each),
            )
            for each in sessions
        ),
    )
