#!/usr/bin/env python3
"""Sums the traffic in JSON logs of nbd-gateway by who it was. Needs nothing but Python.

    nbd-gateway serve --config gateway.toml --log-format json 2>gateway.log
    examples/traffic-by-identity.py gateway.log

A session that has not ended yet is not in the log with what it has done; `nbd-gateway sessions` has those.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def lines_of(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Give the lines that are JSON objects."""
    for path in paths:
        with Path(path).open(encoding="utf-8") as log:
            for line in log:
                try:
                    said = json.loads(line)
                except ValueError:
                    continue  # a traceback, or another program's line
                if isinstance(said, dict):
                    yield said


def main(paths: list[str]) -> int:
    """Print a table, the most bytes first."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    who: dict[str, str] = {}
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in lines_of(paths):
        session = str(line.get("session"))
        if line.get("event") == "session begins":
            # Over TLS the log has who it is; else it is known by its address, without the port.
            who[session] = line.get("who") or str(line.get("client")).rpartition(":")[0]
        elif line.get("event") == "session ended":
            done = sums[who.pop(session, "unknown")]
            done["sessions"] += 1
            done["requests"] += sum(line["commands"].values())
            done["read"] += line["bytes_read"]
            done["written"] += line["bytes_written"]
            done["errors"] += sum(line["errors"].values())
    columns = ("sessions", "requests", "read", "written", "errors")
    print(*("who", *columns), sep="\t")
    for name, done in sorted(sums.items(), key=lambda item: -item[1]["read"] - item[1]["written"]):
        print(name, *(done[column] for column in columns), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
