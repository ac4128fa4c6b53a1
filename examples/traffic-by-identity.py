#!/usr/bin/env python3
"""Sums the traffic in JSON logs of nbd-gateway by who it was. Needs nothing but Python.

    nbd-gateway serve --config gateway.toml --log-format json 2>gateway.log
    examples/traffic-by-identity.py gateway.log

A session that has not ended yet is not in the log with what it has done; `nbd-gateway sessions` has those. Nor
are all that ended where very many did in one second (docs/configuration.md, [log]): that is said, and the exit
status is 3. `nbd-gateway exports` has exact sums by export.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def lines_of(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Give the lines that are JSON objects."""
    for path in paths:
        with Path(path).open(encoding="utf-8", errors="replace") as log:
            for line in log:
                try:
                    said = json.loads(line)
                except ValueError:
                    continue  # a traceback, or another program's line
                if isinstance(said, dict):
                    yield said


def identity(ended: dict[str, Any]) -> str:
    """Give who it was, whatever its connection: what TLS has proved, else the address or the local user."""
    client = str(ended["client"])
    proved = str(ended.get("who", "")).removesuffix(client).strip()
    if proved:
        return proved
    if client.startswith("unix:"):
        return re.sub("pid=[0-9]+,", "", client)
    return client.rpartition(":")[0] or client


def missing(line: dict[str, Any]) -> int:
    """Give how many sessions may have ended of which this line says that they are not in the log."""
    if line.get("event") == "log lines left out":
        events = line["events"]
        return int(events.get("session ended", 0) + events.get("others", 0))
    return int(line["lines"]) if line.get("event") == "log lines lost" else 0


def main(paths: list[str]) -> int:
    """Print a table, the most bytes first."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    left_out = 0
    for line in lines_of(paths):
        left_out += missing(line)
        if line.get("event") == "session ended":
            done = sums[identity(line)]
            done["sessions"] += 1
            done["requests"] += sum(line["commands"].values())
            done["read"] += line["bytes_read"]
            done["written"] += line["bytes_written"]
            done["errors"] += sum(line["errors"].values())
    columns = ("sessions", "requests", "read", "written", "errors")
    print(*("who", *columns), sep="\t")
    for name, done in sorted(sums.items(), key=lambda item: -item[1]["read"] - item[1]["written"]):
        print(name, *(done[column] for column in columns), sep="\t")
    if left_out:
        sessions = "1 session" if left_out == 1 else f"{left_out} sessions"
        print(f"up to {sessions} more: their lines were left out, or lost", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
