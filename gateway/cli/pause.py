"""nbd-gateway pause: the sessions of an export begin nothing, and what they have written is durable."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def pause(
    export: str,
    /,
    *,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
    within: float | None = None,
    lasts: Annotated[float | None, Parameter(name="--for")] = None,
) -> int:
    """Hold an export's sessions: finish what is under way, FLUSH, and begin nothing until resume.

    Clients wait meanwhile, and who opens the export as well: its disk may be copied, or its server restarted.

    :param export: The export's name in the configuration.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    :param within: Seconds that what is under way may take; then all go on, and nothing is paused. Default: 30.
    :param lasts: Seconds after which all go on by themselves. Default: 300.
    """
    from gateway.cli.running import do

    arguments: dict[str, object] = {"export": export}
    if within is not None:
        arguments["within"] = within
    if lasts is not None:
        arguments["for"] = lasts
    return do(config, socket, "pause", arguments)
