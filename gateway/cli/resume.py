"""nbd-gateway resume: the sessions of a paused export go on."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def resume(
    export: str | None = None,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    upstream: str | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Have the sessions of a paused export go on; over new connections where the server was restarted.

    :param export: The export's name, or with --all a pattern of names.
    :param all_: All paused exports that the pattern matches.
    :param upstream: In place of a name: all paused exports of the server of [upstream.NAME].
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do, meant

    return do(config, socket, "resume", meant(export, all_=all_, upstream=upstream))
