"""Where the program begins: `nbd-gateway` is `python -m gateway`.

Before anything else is loaded, which takes longer than whoever has started a gateway may wait with his signal:
what would kill it, and means a reload or nothing to one that runs, is held back until it listens to signals
(`gateway.app.run`). And no garbage is looked for before that: what is loaded is none, and an eighth of the time
until clients can connect went into looking.
"""

import gc
import signal
import sys

HELD_BACK = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Run the command line of this process, and give its exit status."""
    if sys.argv[1:2] == ["serve"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        gc.disable()  # `gateway.cli.serve` has it begin
    from gateway import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
