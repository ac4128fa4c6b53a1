"""What the first client will need of this machine and is not there, said in the log before he comes.

A start that needs something itself fails without it. A directory for an audit file and the program of a server
are needed only when somebody opens an export, which may be in the night. They may still come by then (a disk
that is mounted later), so it is no reason not to serve.

It is looked for in a thread, for files may hang; and by policies of whoever has written them, so nothing that
they raise ends the gateway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway.config import Config
from gateway.inspect.needs import lacking_for_clients

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LOOK_FOR_IT_SECONDS = 5
"""How long that may take: who reloads waits for it."""


async def say_what_is_lacking(config: Config, log: FilteringBoundLogger) -> None:
    """Look for it, and warn."""
    if not _may_lack(config):
        return  # and there is no thread, which costs all others a little

    def found() -> list[str]:
        # A policy that stands in many places lacks the same in all of them.
        return list(dict.fromkeys(why for _at, why in lacking_for_clients(config)))

    with trio.move_on_after(LOOK_FOR_IT_SECONDS):
        try:
            whys = await trio.to_thread.run_sync(found, abandon_on_cancel=True)
        except (Exception, SystemExit):
            log.exception("what clients will need could not be looked for")
            return
        for why in whys:
            log.warning("clients will need what is not there", what=why)


def _may_lack(config: Config) -> bool:
    return (
        any(upstream.command for upstream in config.upstream.values())
        or any(rule.policies for rule in config.rule)
        or any(export.policies for export in config.export)
    )
