"""Has a gateway kill itself with -9 at a certain point of an upgrade, for whoever has this folder in
PYTHONPATH: `DIES_AT` names a file that says which. Python imports a module of this name before anything else.

    older bye before        the older process is about to say `bye`
    newer ready after       the newer one's `ready` is on its way, and nothing else was done since
    older FINISH before     the older one is about to do what the table calls so (`gateway.upgrade.steps.Act`)

The file goes with who has died.
"""

import os
import signal
import sys
from pathlib import Path

if "DIES_AT" in os.environ and "serve" in sys.orig_argv:
    from collections.abc import Callable
    from typing import Any

    from gateway.handover.channel import Channel
    from gateway.upgrade import newer, older

    AT = Path(os.environ["DIES_AT"])
    NEWERS: set[Channel] = set()

    def die_if(point: str) -> None:
        """Die, if it is time."""
        try:
            told = AT.read_text()
        except FileNotFoundError:  # nobody is to die, or the other one just has
            return
        if told == point:
            AT.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    say_it, begin_it = Channel.say, newer.Newer.__init__

    def say(
        self: Channel,
        message: Any,
        *,
        sent: Callable[[], object] | None = None,
        unsent: Callable[[], object] | None = None,
    ) -> None:
        """Say it, or die."""
        point = f"{'newer' if self in NEWERS else 'older'} {message.kind}"
        die_if(f"{point} before")

        def then() -> None:
            die_if(f"{point} after")
            if sent is not None:
                sent()

        say_it(self, message, sent=then, unsent=unsent)

    def begin(self: newer.Newer, end: Any) -> None:
        """Know whose channel it is."""
        begin_it(self, end)
        NEWERS.add(self._channel)

    def mortal(point: str, do: Callable[[Any], None]) -> Callable[[Any], None]:
        """Give something to be done, or to die at."""

        def do_it(who: Any) -> None:
            die_if(point)
            do(who)

        return do_it

    setattr(Channel, "say", say)  # noqa: B010 # mypy minds the other way
    setattr(newer.Newer, "__init__", begin)  # noqa: B010 # the same
    for module in (older, newer):
        name = module.__name__.rpartition(".")[2]
        for act, do in module._DO.items():
            module._DO[act] = mortal(f"{name} {act.name} before", do)
