"""What was seen of programs, as tests of those that `servers` starts: Debian 12's, and in tests/trixie those of
Debian 13. No gateway is between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import STDOUT

import pytest
import trio

from gateway.embedded import Faults, MemoryDisk, Request
from gateway.embedded import Server as Embedded
from gateway.net.dial import dial
from gateway.protocol.client_role import Answered, Refused
from gateway.uri import parse_nbd_uri
from gateway.wire import transmission
from gateway.wire.constants import Chunk, Cmd, Errno, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MIB
from tests.embedded.peers import Client, listening

from .servers import Servers

SECONDS = 60
"""How long anything here may take before it hangs."""


SIZE = MIB


@pytest.fixture
def disk(servers: Servers) -> Path:
    """1 MiB of data."""
    path = servers.workdir / "disk"
    path.write_bytes(b"d" * SIZE)
    return path


@asynccontextmanager
async def client_of(uri: str) -> AsyncIterator[Client]:
    with trio.fail_after(SECONDS):
        stream = await dial(parse_nbd_uri(uri))
        async with stream:
            yield Client(stream)


async def flags_of(client: Client, name: str, *, structured: bool = True) -> Flag:
    told = await client.go(name, structured=structured)
    assert told.export is not None
    return Flag(told.export.flags)


async def is_closed(client: Client) -> bool:
    """The server has closed, be it by a reset, and has said nothing more."""
    try:
        return not await client.stream.receive_some()
    except trio.BrokenResourceError:
        return True


async def test_q_s9_the_tail_of_an_odd_image_is_there(servers: Servers) -> None:
    image = servers.workdir / "odd"
    image.write_bytes(b"x" * 1000)
    async with client_of(servers.qemu_nbd("-f", "raw", image).uri) as client:
        told = await client.go()
        assert told.export is not None
        assert told.export.size == 1024
        assert await client.read(0, 1024) == b"x" * 1000 + bytes(24)


async def test_q_s7_large_blocks_are_insisted_on(servers: Servers, disk: Path) -> None:
    blocks = f"driver=blkdebug,align=4096,image.driver=file,image.filename={disk}"
    async with client_of(servers.qemu_nbd("-r", "--image-opts", blocks).uri) as client:
        await client.structured()
        client.negotiation.ask_info("", ())
        assert (await client.refused()).reply == Rep.ERR_BLOCK_SIZE_REQD


async def test_q_s12_all_that_is_illegal_is_einval(servers: Servers, disk: Path) -> None:
    upstream = servers.qemu_nbd("-f", "raw", disk)
    async with client_of(upstream.uri) as client:
        await client.go()
        assert await client.error(Cmd.WRITE, SIZE, data=bytes(512)) == Errno.EINVAL
        assert await client.error(Cmd.READ, SIZE, 512) == Errno.EINVAL
    read_only = servers.qemu_nbd("-r", "-f", "raw", disk)
    async with client_of(read_only.uri) as client:
        await client.go()
        assert await client.error(Cmd.WRITE, 0, data=bytes(512)) == Errno.EINVAL


async def test_q_s13_a_long_write_ends_the_connection(servers: Servers, disk: Path) -> None:
    async with client_of(servers.qemu_nbd("-f", "raw", disk).uri) as client:
        await client.go()
        cookie = await client.send(Cmd.WRITE, 0, 32 * MIB + 1)
        assert (await client.reply(cookie))[0].error == Errno.EINVAL
        assert await is_closed(client)


async def test_q_s15_a_read_that_fails_ends_the_connection(servers: Servers, disk: Path) -> None:
    fails = "inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=5"
    below = f"image.driver=file,image.filename={disk}"
    options = f"driver=blkdebug,{fails},inject-error.0.once=off,{below}"
    async with client_of(servers.qemu_nbd("-r", "--image-opts", options).uri) as client:
        await client.go()
        await client.send(Cmd.READ, 0, 65536)
        assert await is_closed(client)


async def test_q_s18_nbd_server_offers_zeroing_of_what_is_read_only(
    servers: Servers, disk: Path
) -> None:
    async with client_of(servers.nbd_server(disk).uri) as client:
        flags = await flags_of(client, "archive", structured=False)
        assert flags & Flag.READ_ONLY
        assert flags & Flag.SEND_WRITE_ZEROES


async def test_q_n5_abort_is_not_answered(servers: Servers, disk: Path) -> None:
    async with client_of(servers.nbd_server(disk).uri) as client:
        await client.greeting()
        client.negotiation.abort()
        await client.stream.send_all(client.negotiation.data_to_send())
        assert await is_closed(client)


async def test_q_n21_info_says_size_0(servers: Servers, disk: Path) -> None:
    async with client_of(servers.nbd_server(disk).uri) as client:
        await client.greeting()
        client.negotiation.ask_info("disk", ())
        told = await client.answered()
        assert told.export is not None
        assert told.export.size == 0


async def test_q_k8_a_long_read_is_enomem(servers: Servers) -> None:
    async with client_of(servers.nbdkit("memory", "1G").uri) as client:
        await client.go()
        assert await client.error(Cmd.READ, 0, 64 * MIB + 512) == Errno.ENOMEM


async def test_q_k9_a_second_list_is_refused(servers: Servers) -> None:
    async with client_of(servers.nbdkit("memory", "1M").uri) as client:
        await client.greeting()
        client.negotiation.list_exports()
        assert isinstance(await client.event(), Answered)
        client.negotiation.list_exports()
        assert isinstance(await client.event(), Refused)


@pytest.mark.parametrize(("length", "lives"), [(900, True), (1200, False)])
async def test_q_c3_a_long_error_text_ends_qemus_client(
    servers: Servers, workdir: Path, length: int, lives: bool
) -> None:
    def refused(request: Request, reply: list[bytes]) -> list[bytes]:
        if request.command != Cmd.READ:
            return reply
        payload = transmission.ERROR_HEAD.pack(Errno.EIO, length) + b"t" * length
        return [transmission.encode_chunk(request.cookie, Chunk.ERROR, payload)]

    server = Embedded({"": MemoryDisk(MIB)}, faults=Faults(on_reply=refused))
    async with listening(server, workdir) as uri:
        command = ["qemu-io", "-f", "raw", "-c", "read 0 512", "-c", "write 0 512", uri]
        with trio.fail_after(SECONDS):
            done = await trio.run_process(
                [*servers.prefix, *command], capture_stdout=True, stderr=STDOUT, check=False
            )
    said = done.stdout.decode()
    assert "read failed" in said
    assert ("wrote 512/512" in said) == lives


TESTS = {name: it for name, it in globals().items() if name.startswith("test_")}
"""For the test files that take them in."""
