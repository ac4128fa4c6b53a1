"""The log, to standard error: how much of it, and how it looks.

A reload may change both, and clients that are here have loggers of their own (structlog copies one for every
`bind`). So the list of what is done with a line is one for all of them, and its content is what is exchanged:
else a collector of JSON would go on getting lines for people.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from gateway.config import Log

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

_processors: list[Processor] = []


def logger(settings: Log) -> FilteringBoundLogger:
    """Set up logging. structlog is imported here, when clients can connect already: it is a third of what
    starting takes.
    """
    import structlog

    set_up(settings)
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(0),  # `_from` decides
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    made: FilteringBoundLogger = structlog.get_logger()
    return made


def set_up(settings: Log) -> None:
    """Have every line that comes from now on look so, whoever writes it."""
    import logging

    import structlog

    numbers = logging.getLevelNamesMapping()
    least = numbers[settings.level.upper()]

    def _from(_: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if numbers["ERROR" if method == "exception" else method.upper()] < least:
            raise structlog.DropEvent
        return line

    as_json = settings.format == "json"
    _processors[:] = [
        _from,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info
        if as_json
        else structlog.processors.StackInfoRenderer(),
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
    ]
