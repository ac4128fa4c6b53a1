"""nbd-gateway switch: the sessions of an export go over to another server."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def switch(
    export: str | None = None,
    uri: str | None = None,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    upstream: str | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
    within: float | None = None,
    close_first: bool = False,
    accept_loss: bool = False,
) -> int:
    """Have an export's sessions, and its new clients, go over to another server of the same disk.

    All or nothing: a server of another size, or that lacks what a client was promised or the present server
    has, is refused. The configuration stays as it is; where the export is to stay there, change that as well.

    :param export: The export's name, or with --all a pattern of names.
    :param uri: The server. Without one: new connections to the one that the configuration names.
    :param all_: All exports that the pattern matches.
    :param upstream: In place of a name: all exports of the server of [upstream.NAME].
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    :param within: Seconds that all of it may take; then nothing is switched. Default: 30.
    :param close_first: Close the old connections before new ones are made: for a server that takes only one.
        If that fails, the export stays paused.
    :param accept_loss: Switch it also if something was lost of which not everybody was told.
    """
    from gateway.cli.running import do, meant

    if upstream is not None and uri is None:
        export, uri = None, export  # with --all or --upstream, no name comes before it
    arguments = meant(export, all_=all_, upstream=upstream)
    if uri is not None:
        arguments["uri"] = uri
    if within is not None:
        arguments["within"] = within
    if close_first:
        arguments["close-first"] = True
    if accept_loss:
        arguments["accept-loss"] = True
    waits_for = (
        "waiting for the server, which is tried again for connect-seconds where it refuses, and for what is"
        " under way"
    )
    return do(config, socket, "switch", arguments, waits_for=waits_for)
