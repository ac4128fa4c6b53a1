"""nbd-gateway losses: what disks may have lost, and not everybody was told of."""

from pathlib import Path


def losses(
    export: str | None = None,
    /,
    *,
    forget: bool = False,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show what may be lost of the disks behind the gateway, as long as somebody has still to be told.

    Sessions are told by an EIO at their next FLUSH; what no session was told of, by one to the next client that
    opens the disk. Ranges are those of the server's disk, in bytes.

    :param export: The export whose disk is meant. Default: all disks.
    :param forget: Drop what nobody was told of, so that no later client is. Sessions that
        have still to be told are told all the same.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.asking import export_named
    from gateway.cli.running import do

    arguments: dict[str, object] = {} if export is None else {"export": export_named(export)}
    if forget:
        arguments["forget"] = True
    return do(config, socket, "losses", arguments)
