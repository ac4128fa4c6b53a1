"""nbd-gateway drain: it takes no more clients."""

from pathlib import Path


def drain(
    listener: str | None = None,
    /,
    *,
    deadline: float | None = None,
    end: bool = False,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Take no more clients. Those that are there stay as long as they like, or until a deadline.

    With --end the gateway ends, as after SIGTERM: it closes its listeners, waits for the sessions, and ends
    those that are left at the deadline, in good order. What it waits for, "nbd-gateway status" shows.

    :param listener: The URI of a listener, as "nbd-gateway status" has it. Default: all of them.
    :param deadline: After how many seconds the sessions end that are still there. Default: never; with --end,
        after leave-seconds of the configuration.
    :param end: End the gateway when the sessions have gone.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli import UsageError
    from gateway.cli.running import do

    if end and listener is not None:
        raise UsageError("--end closes all listeners: leave LISTENER out")
    said = {"listener": listener, "deadline": deadline, "end": end or None}
    given = {key: value for key, value in said.items() if value is not None}
    return do(config, socket, "drain", given)
