"""The last lines of the log, for whoever looks at the gateway and not at its standard error.

They are kept as what they say and not as text, after all that makes them safe and before they are made to look
like anything. They are kept from level `info` on, whatever level is written; the bounds of `gateway.log.rates`
hold here, too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

from gateway.wire.handshake import printable

MOST_LINES = 500
"""What is kept: some screens, and half a megabyte at most."""

MOST_CHARACTERS = 1000
"""Of one value: names are cut at a quarter of that."""

MOST_AT_A_TIME = 100
"""Lines that are given at a time: they become JSON in a third of a millisecond."""


class Recent:
    """The last lines. They may come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[dict[str, Any]] = deque(maxlen=MOST_LINES)
        self._number = 0

    def note(
        self, _logger: Any, method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Keep a line, and hand it on: a processor of structlog."""
        said = {name: _plain(value) for name, value in line.items() if name != "event"}
        level = "error" if method == "exception" else method
        self.take(
            {
                "time": round(time.time(), 3),
                "level": level,
                "event": str(line.get("event")),
                "fields": said,
            }
        )
        return line

    def take(self, line: Mapping[str, Any]) -> None:
        """Keep a line as `after` gives it, of this process or another one; it gets a number of ours."""
        with self._lock:
            self._number += 1
            self._lines.append({**line, "number": self._number})

    def after(self, number: int) -> list[dict[str, Any]]:
        """Give the lines after one, by its number; if there are more than are given at a time, the last."""
        with self._lock:
            newest = [each for each in self._lines if each["number"] > number]
        return newest[-MOST_AT_A_TIME:]


def _plain(value: object) -> Any:
    """Give what JSON can say, of a bounded size."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and all(isinstance(each, int) for each in value.values()):
        text = ", ".join(f"{name} {number}" for name, number in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(map(str, value))
    elif isinstance(value, BaseException):
        text = repr(value)
    else:
        text = str(value)
    return printable(text[:MOST_CHARACTERS])
