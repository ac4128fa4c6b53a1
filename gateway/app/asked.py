"""What was asked over the control socket, in the log: who has asked, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.admin.control import Asked

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


def say_asked(log: FilteringBoundLogger, asked: Asked) -> None:
    """Say it."""
    answer = asked.answer
    export = asked.arguments.get("export")
    ours = {"verb": asked.verb, "pid": asked.by.pid, "uid": asked.by.uid}
    ours |= {"export": export} if isinstance(export, str) else {}
    ours |= {"arguments": dict(asked.arguments)} if asked.arguments.keys() - {"export"} else {}
    ours |= {} if asked.asked_by is None else {"asked_by": asked.asked_by}
    if answer is None:
        log.warning("command undone: who asked has gone", **ours)
    elif answer.ok and answer.data is not None:
        log.debug("question answered", **ours)  # it may be asked every second
    elif answer.ok:
        log.info("command done", **ours, done=[*answer.done], problems=[*answer.problems])
    else:
        log.warning("command not done", **ours, why=[*answer.problems])
