"""nbd-gateway pause: the sessions of an export begin nothing, and what they have written is durable."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gateway.cli import INTERRUPTED, UsageError, complain


def pause(
    export: str | None = None,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    upstream: str | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
    within: float | None = None,
    lasts: Annotated[float | None, Parameter(name="--for")] = None,
    accept_loss: bool = False,
    run: str | None = None,
) -> int:
    """Hold an export's sessions: finish what is under way, FLUSH, and begin nothing until resume.

    Clients wait meanwhile, and who opens the export as well: its disk may be copied, or its server restarted.

    A command is run while it is paused, and the export resumed whatever becomes of that:

      nbd-gateway pause disk -- cp --reflink=always /srv/disk.img /srv/disk.copy

    (That copies in an instant on XFS and Btrfs; ext4 and tmpfs cannot, and cp fails there.)

    Then the exit status is the command's; or 1, if the export was not paused and nothing run;
    or 3, if the command has succeeded, and the pause had ended before it.

    :param export: The export's name, or with --all a pattern of names.
    :param all_: All exports that the pattern matches.
    :param upstream: In place of a name: all exports of the server of [upstream.NAME].
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    :param within: Seconds that all of it may take; then all go on, and nothing is paused. Default: 30.
    :param lasts: Seconds after which all go on by themselves. Default: 300.
    :param accept_loss: Pause it also if something was lost of which not everybody was told.
    :param run: Run this shell command meanwhile; the same as -- COMMAND.
    """
    from gateway.cli.running import do, meant

    arguments = meant(export, all_=all_, upstream=upstream)
    if within is not None:
        arguments["within"] = within
    if lasts is not None:
        arguments["for"] = lasts
    if accept_loss:
        arguments["accept-loss"] = True
    if run is None:
        waits_for = "waiting for what is under way"
        return do(config, socket, "pause", arguments, waits_for=waits_for)
    if not run.strip():
        raise UsageError("expected a command behind --, got nothing")
    return _pause_for(config, socket, arguments, run)


def _pause_for(
    config: Path, socket: Path | None, arguments: Mapping[str, object], command: str
) -> int:
    """Pause, run a command, and resume."""
    import trio

    from gateway.cli.running import NoAnswer, socket_of

    try:
        return trio.run(_paused_for, socket or socket_of(config, "pause"), arguments, command)
    except NoAnswer as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted: nothing was run, and the gateway resumes what it has paused")
        return INTERRUPTED


async def _paused_for(socket: Path, arguments: Mapping[str, object], command: str) -> int:
    """Run a command while a connection holds the pause, so that the pause ends whatever becomes of us."""
    import secrets

    from gateway.cli.running import SEEN_TO, asking_gateway, said

    me = {"holder": secrets.token_hex(8)}
    meanwhile = {**arguments, **me, "while-connected": True}
    async with asking_gateway(socket, "pause", meanwhile) as answer:
        if not answer.ok:
            return said(answer)
        for done in answer.done:
            complain(done)  # standard output belongs to the command
        status = await _run(command)
        which = {key: arguments[key] for key in ("export", "upstream", "all") if key in arguments}
        async with asking_gateway(socket, "resume", {**which, **me}) as resumed:
            for line in (*resumed.done, *resumed.problems):
                complain(line)
        if resumed.ok:
            return status
        complain("so clients may have gone on while the command ran")
        return status or SEEN_TO


async def _run(command: str) -> int:
    """Run a shell command to its end, and give its status as a shell does. We hand on a signal that would end
    us: the command must not go on when nothing is held any more. (The terminal sends SIGINT to it as well.)
    """
    import signal

    import trio

    came: list[int] = []
    process: trio.Process | None = None

    def heed(number: int, _frame: object) -> None:
        came.append(number)
        hand_on()

    def hand_on() -> None:
        while process is not None and came:
            number = came.pop()
            if number != signal.SIGINT:
                process.send_signal(number)

    # Not Trio's receiver: that would deliver to us once more what came just as the command ended.
    heeded = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, heed) for number in heeded}
    try:
        process = await trio.lowlevel.open_process(["/bin/sh", "-c", command])
        hand_on()
        status = await process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
