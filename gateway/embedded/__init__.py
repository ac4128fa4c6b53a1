"""NBD servers of our own: over memory, over a file, and a scriptable one with the manners of old servers.

`memory:1G`, `file:disk.img` and `legacy:qemu-3.0` name them as upstreams, which are reached over a socket pair
within the process. For the tests they are the peer that misbehaves. They speak through `gateway.wire` and
`gateway.protocol` like everything else here.

    server.py       a connection's life, from the greeting to the end
    session.py      its transmission phase
    inbox.py        what was received and not looked at yet
    peer.py         the other end of it: bytes in, bytes out
    secure.py       TLS below that, a record at a time
    disk.py, file_disk.py  what is exported
    overlay.py      what one connection has written, over a disk that stays as it is
    offset.py       a part of an image
    dirty.py        which parts were written
    personality.py  how a server behaves: a table
    manners.py      negotiation as old servers do it
    incoherent.py   a cache of a connection's own, which knows nothing of the others
    faults.py       misbehaviour on request
    within.py       how one is reached from this process
"""

from __future__ import annotations

import math

from gateway.embedded.disk import DiskError, MemoryDisk, ServedDisk
from gateway.embedded.faults import Faults, Request
from gateway.embedded.file_disk import FileDisk
from gateway.embedded.personality import PERSONALITIES, Personality
from gateway.embedded.server import Server
from gateway.embedded.within import InProcess
from gateway.uri import FileUri, Legacy, MemoryUri

__all__ = [
    "PERSONALITIES",
    "DiskError",
    "Faults",
    "FileDisk",
    "InProcess",
    "MemoryDisk",
    "Personality",
    "Request",
    "ServedDisk",
    "Server",
    "make_server",
]


def make_server(
    target: MemoryUri | FileUri | Legacy, *, handshake_seconds: float = math.inf
) -> Server:
    """Give the server that a short form of an upstream stands for. Raises `DiskError`.

    By default negotiation has no deadline here: within the process, the client has one of its own.
    """
    personality = PERSONALITIES["plain"]
    disk: ServedDisk
    match target:
        case MemoryUri(size_bytes):
            disk = MemoryDisk(size_bytes)
        case FileUri(path):
            disk = FileDisk(path)
        case Legacy(name, size_bytes):
            if name not in PERSONALITIES:
                known = ", ".join(sorted(PERSONALITIES))
                raise DiskError(f"there is no server {name!r} to imitate, only {known}")
            personality = PERSONALITIES[name]
            disk = MemoryDisk(personality.image_size(size_bytes) + personality.offset_bytes)
    return Server({"": disk}, personality, handshake_seconds=handshake_seconds)
