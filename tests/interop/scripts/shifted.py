"""Serve a disk as qemu 3.0 does with --offset: shifted.py SOCKET. Ends by itself after a minute."""

import sys
from dataclasses import replace

import trio

from gateway.embedded import PERSONALITIES, MemoryDisk, Server

SIZE, SHIFT = 8 << 20, 1 << 20


async def main() -> None:
    disk = MemoryDisk(SIZE)
    await disk.write(0, bytes(range(1, 129)) * 4096, fua=False)
    server = Server({"": disk}, replace(PERSONALITIES["qemu-3.0"], hole_shift_bytes=SHIFT))
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(sys.argv[1])
        sock.listen()
        with trio.move_on_after(60):
            await trio.serve_listeners(server.serve, [trio.SocketListener(sock)])


trio.run(main)
