"""nbd-gateway switch: the sessions of an export go over to another server."""

from pathlib import Path


def switch(
    export: str,
    uri: str | None = None,
    /,
    *,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
    within: float | None = None,
    close_first: bool = False,
) -> int:
    """Have an export's sessions, and its new clients, go over to another server of the same disk.

    All or nothing: a server of another size, or that lacks what a client was promised, is refused. The
    configuration stays as it is; where the export is to stay there, change that as well.

    :param export: The export's name in the configuration.
    :param uri: The server. Without one: new connections to the one that the configuration names.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    :param within: Seconds that what is under way may take; then nothing is switched. Default: 30.
    :param close_first: Close the old connections before new ones are made: for a server that takes only one.
        If that fails, the export stays paused.
    """
    from gateway.cli.running import do

    arguments: dict[str, object] = {"export": export}
    if uri is not None:
        arguments["uri"] = uri
    if within is not None:
        arguments["within"] = within
    if close_first:
        arguments["close-first"] = True
    return do(config, socket, "switch", arguments)
