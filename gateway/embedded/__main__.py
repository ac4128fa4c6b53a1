"""`python -m gateway.embedded`: an embedded server alone, for use by hand and from tests of others.

python -m gateway.embedded memory:64M --unix /tmp/sock
python -m gateway.embedded legacy:qemu-3.0 --port 10809
python -m gateway.embedded legacy:qemu-2.8 --port 10809 --tls-certificates pki
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

import trio

from gateway.embedded import DiskError, Server, make_server
from gateway.embedded.server import HANDSHAKE_SECONDS
from gateway.tls.credentials import server_credentials
from gateway.tls.errors import CredentialsError
from gateway.uri import NbdUri, UriError, parse_upstream
from gateway.wire.constants import DEFAULT_PORT

BACKLOG = 1024


async def serve(server: Server, *, unix: Path | None, host: str, port: int) -> None:
    """Print the URI as soon as clients can connect, and serve until cancelled."""
    if unix is None:
        listeners = await trio.open_tcp_listeners(port, host=host)
        port = listeners[0].socket.getsockname()[1]
        uri = f"nbd://{host}:{port}"
    else:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await sock.bind(str(unix))
        sock.listen(BACKLOG)
        listeners = [trio.SocketListener(sock)]
        uri = f"nbd+unix:///?socket={unix}"
    sys.stdout.write(f"{uri}\n")
    sys.stdout.flush()
    try:
        await trio.serve_listeners(server.serve, listeners)
    finally:
        if unix is not None:
            unix.unlink(missing_ok=True)


def main() -> None:
    """Parse the command line, and serve."""
    parser = argparse.ArgumentParser(prog="python -m gateway.embedded", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("disk", nargs="?", default="memory:64M")
    parser.add_argument("--unix", type=Path, metavar="PATH")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--tls-certificates", type=Path, metavar="DIRECTORY")
    arguments = parser.parse_args()
    try:
        target = parse_upstream(arguments.disk)
        if isinstance(target, NbdUri):
            raise UriError(arguments.disk, "an embedded server is memory:, file: or legacy:")
        server = make_server(target, handshake_seconds=HANDSHAKE_SECONDS)
        if arguments.tls_certificates is not None:
            server.tls = server_credentials(arguments.tls_certificates).session
        # Not suppress(): before Python 3.12 it does not look into the group that a nursery makes of it.
        try:
            trio.run(
                lambda: serve(server, unix=arguments.unix, host=arguments.host, port=arguments.port)
            )
        except* KeyboardInterrupt:
            pass
    except (UriError, DiskError, CredentialsError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
