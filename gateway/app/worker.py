"""Where a worker begins: `python -m gateway.app.worker DESCRIPTOR NUMBER`, which the supervisor starts.

The descriptor is its end of the channel to the supervisor, over which it is told what to serve
(`gateway.workers.member`). The number is for people who look at the list of processes; the supervisor says it
again. It is the gateway of `gateway.app.run`, with the supervisor's listening sockets in place of its own, and
no control socket.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from functools import partial

HELD_BACK = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""As in `gateway.__main__`: they would end it before it listens to signals."""


def main() -> int:
    """Serve as the supervisor says, and give the exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    gc.disable()
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    import trio

    from gateway.log.standard_error import taken_over

    with taken_over():
        return trio.run(partial(_serve, socket.socket(fileno=descriptor)))


async def _serve(end: socket.socket) -> int:
    from gateway.app.run import serve
    from gateway.upstream.configured import StartError
    from gateway.workers.member import Member, NothingToServe

    member = Member(end)
    try:
        await member.greet()
    except NothingToServe:
        return 1
    try:
        return await serve(member.config, listening=_loaded, member=member)
    except StartError as error:
        await member.failed(str(error))
        return 1


def _loaded(_uris: object) -> None:
    """Have garbage looked for from now on, but not in what is loaded: that stays."""
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
