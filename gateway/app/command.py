"""What a gateway is there for by `--run`: a command that is a client, and knows where to connect."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import trio

from gateway.net.keeping import Keeper
from gateway.net.listen import Listener
from gateway.net.socket_file import is_abstract
from gateway.uri import MAX_SOCKET_PATH_BYTES, NbdUri


async def run_command(command: str, listener: Listener, keeper: Keeper) -> int:
    """Run a shell command to its end, with what leads to a listener in its environment; give the exit status
    that a shell would give. It ends when this is cancelled.
    """
    uri = _for_clients(listener)
    environment = os.environ | {
        "uri": str(uri),
        "port": str(uri.port or ""),
        "unixsocket": "" if _is_abstract(uri) else uri.socket_path or "",
    }
    kept = keeper.start("tree", ["/bin/sh", "-c", command], environment=environment)
    try:
        status = await kept.wait()
    finally:
        with trio.CancelScope(shield=True):  # it has limits of its own
            await keeper.end(kept)
    return status if status >= 0 else 128 - status


def _is_abstract(uri: NbdUri) -> bool:
    return uri.socket_path is not None and is_abstract(uri.socket_path)


def _for_clients(listener: Listener) -> NbdUri:
    """Give the URI by which a client here gets in, wherever it goes."""
    listen, uri = listener.settings, listener.uri
    if uri.socket_path is not None and not _is_abstract(uri):
        path = str(Path(uri.socket_path).absolute())
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            uri = replace(uri, socket_path=path)
    if listen.tls_mode != "require":
        return uri
    from gateway.tls.client_uri import client_uri

    verify = listen.verify_client is not False
    return client_uri(uri, listen.certificates, listen.psk, verify_client=verify)
