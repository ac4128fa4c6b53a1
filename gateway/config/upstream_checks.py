"""What no key of [upstream.NAME] alone can tell of its connections: see `checks.py`, which asks these."""

from collections.abc import Iterator

from gateway.config.connections import Connections, parse_connections
from gateway.config.data import Data, Finding, Where, tables_of
from gateway.config.lines import KeyPath


def connections(data: Data, where: Where) -> Iterator[Finding]:
    """Find what contradicts `connections`."""
    for path, upstream in tables_of(data, "upstream"):
        wanted = _wanted(upstream)
        if wanted is None:
            continue
        yield from _room(path, upstream, wanted.count)
        if wanted.count == 1:
            for key in ("stripe", "coherence"):
                if key in upstream:
                    text = "this is for several connections: add connections = 4, or leave this out"
                    yield (*path, key), text
            continue
        uris = upstream.get("uris")
        if isinstance(uris, list) and len(uris) > 1 and not _said(upstream, "same-storage"):
            yield (
                (*path, "connections"),
                "with several uris, each of these connections may lead to another disk: add same-storage = true"
                f' if they are one, or write connections = "{_one(wanted)}"',
            )
        if upstream.get("coherence") == "strong" and "stripe" in upstream:
            text = (
                'with coherence = "strong" any connection may be taken, so nothing goes by stripes'
            )
            yield (*path, "stripe"), text
        warm = upstream.get("warm")
        if type(warm) is int and warm > 0:
            text = (
                "several connections are made together, so that they lead to one server, and none of them"
                f' ahead: leave this out, or write connections = "{_one(wanted)}"'
            )
            yield (*path, "warm"), text


def _room(path: KeyPath, upstream: Data, count: int) -> Iterator[Finding]:
    """Say what does not fit into `max-connections`."""
    most = upstream.get("max-connections")
    if type(most) is not int or most < 1:
        return
    if most < count:
        yield (
            (*path, "connections"),
            f"these do not fit into max-connections = {most}: expected {most} at most, got {count}",
        )
    warm = upstream.get("warm")
    if type(warm) is int and warm > most:
        text = (
            f"these do not fit into max-connections = {most}: expected {most} at most, got {warm}"
        )
        yield (*path, "warm"), text


def survival(data: Data, where: Where) -> Iterator[Finding]:
    """Find promises about lost connections that could not be kept."""
    for path, upstream in tables_of(data, "upstream"):
        unflushed, wanted = upstream.get("unflushed"), _wanted(upstream)
        blamed = (*path, "unflushed")
        if unflushed in ("verify", "replay") and wanted is not None and not wanted.shared:
            shared = Connections(shared=True, count=wanted.count)
            yield (
                blamed,
                f'"{unflushed}" needs one log of what all clients wrote, and here each has its own connections:'
                f' write connections = "{shared}", or unflushed = "sticky"',
            )
        if unflushed == "replay" and not _said(upstream, "sole-writer"):
            yield (
                blamed,
                '"replay" would undo what others have written meanwhile: add sole-writer = true if nobody else'
                ' writes to these disks, or write unflushed = "verify"',
            )
        if unflushed in ("verify", "replay") and upstream.get("reconnect-seconds") in (0, 0.0):
            yield (
                blamed,
                f'with reconnect-seconds = 0 clients end with their connection, and "{unflushed}" would help'
                " nobody: leave one of the two out",
            )
        if _said(upstream, "server-is-peer") and not _has_unix_socket(upstream):
            yield (
                (*path, "server-is-peer"),
                "this is for a server at a Unix socket, as nbd+unix:///?socket=/run/disk.sock: leave it out"
                + (": the end of a command is known without it" if "command" in upstream else ""),
            )
        if "replay-bytes" in upstream and unflushed != "replay":
            yield (
                (*path, "replay-bytes"),
                'this is for unflushed = "replay": add that, or leave this out',
            )


def _wanted(upstream: Data) -> Connections | None:
    """Give how many connections are wanted; None if what is written means nothing."""
    try:
        return parse_connections(upstream.get("connections", "per-client"))
    except ValueError:
        return None


def _has_unix_socket(upstream: Data) -> bool:
    uris = upstream.get("uris")
    written = [upstream.get("uri"), *(uris if isinstance(uris, list) else [])]
    return any(isinstance(uri, str) and "+unix:" in uri for uri in written)


def _one(wanted: Connections) -> Connections:
    return Connections(shared=wanted.shared)


def _said(upstream: Data, key: str) -> bool:
    """Say whether a key is true; what is neither true nor false was perhaps meant to be."""
    return upstream.get(key, False) is not False
