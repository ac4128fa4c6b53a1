"""nbd-gateway upstreams: the servers behind a running gateway."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def upstreams(
    *,
    json: Annotated[bool, Parameter(name="--json")] = False,
    watch: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show the servers behind a running gateway: whether they are there, who uses them, what is repaired.

    :param json: As JSON, one object a line (docs/status.md has the names).
    :param watch: Again and again, every so many seconds.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.showing import asked, show
    from gateway.cli.status import upstreams_table

    return show(
        lambda: asked(config, socket, "upstreams", {}),
        lambda shown: upstreams_table(shown["upstreams"]),
        as_json=json,
        watch=watch,
    )
