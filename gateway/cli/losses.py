"""nbd-gateway losses: what disks may have lost, and not everybody was told of."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def losses(
    export: str | None = None,
    /,
    *,
    forget: bool = False,
    json: Annotated[bool, Parameter(name="--json")] = False,
    watch: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show what may be lost of the disks behind the gateway, as long as somebody has still to be told.

    Sessions are told by an EIO at their next FLUSH; what no session was told of, by one to the next client that
    opens the disk. Ranges are those of the server's disk, in bytes.

    :param export: The export whose disk is meant. Default: all disks.
    :param forget: Drop what nobody was told of, so that no later client is. Sessions that
        have still to be told are told all the same.
    :param json: As JSON, one object a line (docs/status.md has the names).
    :param watch: Again and again, every so many seconds.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli import UsageError
    from gateway.cli.asking import export_named
    from gateway.cli.running import do
    from gateway.cli.showing import asked, show

    arguments: dict[str, object] = {} if export is None else {"export": export_named(export)}
    if forget:
        if json or watch is not None:
            raise UsageError("expected --forget alone: --json and --watch only look")
        return do(config, socket, "losses", {**arguments, "forget": True})
    if json or watch is not None:
        look = partial(asked, config, socket, "losses", arguments)
        return show(look, _text, as_json=json, watch=watch)
    return do(config, socket, "losses", arguments)


def _text(shown: dict[str, Any]) -> str:
    from gateway.cli.showing import size, table
    from gateway.plural import plural

    rows = [
        (
            each["disk"],
            "?" if each["bytes"] is None else size(each["bytes"]),
            each["sessions_not_told"],
            "yes" if each["next_is_told"] else "no",
            "; ".join(each["why"]),
        )
        for each in shown["losses"]
    ]
    unknown = shown["more"] + shown["unnamed"]
    more = f"\nand {plural(unknown, 'disk')} more" if unknown else ""
    return table(("DISK", "LOST", "SESSIONS NOT TOLD", "NEXT IS TOLD", ""), rows) + more
