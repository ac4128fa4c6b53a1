"""The log, to standard error: how much of it, and how it looks.

writer.py          lines to a file, written by a thread of its own: a file that hangs holds up nobody
standard_error.py  standard error by such a thread, for Python too
ids.py             one for each client: the same here, in the audit log, and wherever it is shown
rates.py           how many lines a second, and of whom; the clock is passed in
events.py          the table of all that is logged
journal.py         standard error that is systemd's journal
counted.py         how often each event was logged
recent.py          the last lines, for whoever looks at the gateway

A reload may change level and format, but clients that are connected have loggers of their own (structlog copies
one for every `bind`). So all loggers share one list of processors, and a reload changes what is in the list.
Otherwise a collector of JSON would go on getting lines for people.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gateway.log.counted import COUNTED
from gateway.log.journal import is_journal, with_priority
from gateway.log.rates import SECOND, Rates
from gateway.log.standard_error import Nobody, StandardError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

    from gateway.config import Log
    from gateway.log.recent import Recent

ORIGIN = "_origin"
"""The key of a line for the client that caused it: its `Identity.origin`. It is not written."""

NAMES = {"export", "upstream", "server"}
"""The keys whose values are names. Whoever logs one gives it as it is; it is made safe and short here."""

MAX_NAME_CHARACTERS = 256
"""Names that people give are shorter, paths among them; a client may ask for one of 4,096."""

_rates = Rates(time.monotonic)

_rates_of_kept = Rates(time.monotonic)
"""Of lines that are kept (`keep_recent`) and not written."""

_processors: list[Processor] = []

_kept: list[Recent] = []
"""Who keeps the last lines; nobody, unless somebody may ask for them."""

_looks: list[Processor] = []
"""The last of them, which make text of a line."""


def logger(settings: Log, *, clock: Callable[[], float] = time.monotonic) -> FilteringBoundLogger:
    """Set up logging. structlog is imported here, when clients can connect already: its import takes a third of
    the time to start.
    """
    with _without("rich"):
        import structlog

    global _rates, _rates_of_kept
    _rates, _rates_of_kept = Rates(clock), Rates(clock)
    set_up(settings)
    to: Any = sys.stderr or Nobody()
    if isinstance(to, StandardError):
        to.say_lost_by(lambda count: _line("log lines lost", lines=count))
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(0),  # `_from` decides about levels
        logger_factory=structlog.WriteLoggerFactory(to),
    )
    made: FilteringBoundLogger = structlog.get_logger()
    return made


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Have a package seem not to be installed. structlog loads rich if it is, for tracebacks that look
    otherwise than ours; that is nearly half of its import.
    """
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None  # type: ignore[assignment] # what the import system takes for that
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def set_up(settings: Log) -> None:
    """Have every line from now on look as `settings` say, whoever writes it."""
    import logging

    import structlog

    from gateway.wire.handshake import printable

    numbers = logging.getLevelNamesMapping()
    least = numbers[settings.level.upper()]

    def _is_from(lowest: int, method: str) -> bool:
        return numbers["ERROR" if method == "exception" else method.upper()] >= lowest

    def _from(_: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        COUNTED.add(line)
        if not _is_from(min(least, numbers["INFO"]) if _kept else least, method):
            raise structlog.DropEvent
        return line

    def _written(_: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if not _is_from(least, method):
            raise structlog.DropEvent
        return line

    def _rated(_: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # What is only kept takes no place from what is written.
        rates = _rates if _is_from(least, method) else _rates_of_kept
        if not rates.admits(line.pop(ORIGIN, None), str(line.get("event"))):
            if rates is _rates:
                COUNTED.drop()
            raise structlog.DropEvent
        return line

    def _escaped(_: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for key, value in line.items():
            if isinstance(value, str):
                text = _cut(value) if key in NAMES else value
                line[key] = text if text.isprintable() else printable(text)
        return line

    to_journal = is_journal(sys.stderr, os.environ)
    timed = [structlog.processors.TimeStamper(fmt="iso")]
    if settings.format == "json":
        looks: list[Any] = [
            *timed,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        looks = [
            *([] if to_journal else timed),
            structlog.processors.StackInfoRenderer(),
            structlog.dev.ConsoleRenderer(
                colors=_has_colours(),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    urgent: list[Any] = [with_priority] if to_journal else []
    _looks[:] = [structlog.processors.add_log_level, *looks, *urgent]
    # Who looks at the last lines sees what `info` has, whatever is written.
    kept: list[Any] = [each.note for each in _kept]
    _processors[:] = [_from, _rated, _escaped, *kept, _written, *_looks]


def keep_recent(settings: Log) -> Recent:
    """Have the last lines kept from now on; give them."""
    from gateway.log.recent import Recent

    if not _kept:
        _kept.append(Recent())
        set_up(settings)
    return _kept[0]


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}…"


def _has_colours() -> bool:
    """Say whether lines for people have colours: at a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")


async def say_left_out() -> None:
    """Say once a second how many lines were left out because there were too many, until cancelled, and once
    more then.
    """
    import trio

    try:
        while True:
            await trio.sleep(SECOND)
            _say_left_out()
    finally:
        _say_left_out()


def _say_left_out() -> None:
    left_out = _rates.take_left_out()
    if left_out is not None:
        line = _line(
            "log lines left out",
            lines=left_out.lines,
            events=dict(left_out.events),
            clients=dict(left_out.clients),
        )
        print(line, end="", file=sys.stderr or Nobody())


def _line(event: str, **said: object) -> str:
    """Give a line that says how many others are missing: it counts for no rate."""
    line: Any = {"event": event, **said}
    for look in _looks:
        line = look(None, "warning", line)
    return f"{line}\n"
