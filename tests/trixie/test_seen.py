"""What docs/quirks.md says was seen of Debian 13's programs, seen again. No gateway is between."""

from __future__ import annotations

from pathlib import Path
from subprocess import STDOUT

import pytest
import trio

from gateway.embedded import Faults, MemoryDisk, Request
from gateway.embedded import Server as Embedded
from gateway.wire.constants import EXTENDED_REPLY_MAGIC, Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.limits import MIB
from tests.embedded.peers import listening
from tests.interop.seen import SECONDS, TESTS, client_of, flags_of, is_closed
from tests.interop.seen import disk as disk
from tests.interop.servers import Servers

# All that was seen of the older ones was seen of these, too.
globals().update(TESTS)


@pytest.fixture
def servers(new_servers: Servers) -> Servers:
    """Those of the root."""
    return new_servers


@pytest.mark.parametrize(
    ("past", "flags"), [(512, 0), (0, CmdFlag.DF)], ids=["past the end", "DF, which it offers"]
)
async def test_q_n3_nbd_server_answers_a_read_by_a_simple_error(
    servers: Servers, disk: Path, past: int, flags: int
) -> None:
    async with client_of(servers.nbd_server(disk).uri) as client:
        assert await flags_of(client, "disk") & Flag.SEND_DF
        cookie = await client.send(Cmd.READ, (past and MIB), 512, flags=flags)
        assert await client.simple_reply() == (cookie, Errno.EINVAL, b"")


async def test_q_s30_a_silent_client_is_hung_up_on(servers: Servers, disk: Path) -> None:
    async with client_of(servers.qemu_nbd("-f", "raw", disk).uri) as client:
        await client.greeting()
        assert await is_closed(client)


async def test_q_s32_status_payload_is_told_in_info_alone(servers: Servers, disk: Path) -> None:
    async with client_of(servers.qemu_nbd("-f", "raw", disk).uri) as client:
        await client.greeting()
        client.negotiation.ask_extended_headers()
        await client.answered()
        client.negotiation.ask_info("", ())
        info = await client.answered()
        client.negotiation.go("", ())
        go = await client.answered()
        assert info.export is not None
        assert go.export is not None
        assert info.export.flags & ~go.export.flags == Flag.BLOCK_STATUS_PAYLOAD


async def test_q_c1_qemus_writes_lack_payload_len(servers: Servers, workdir: Path) -> None:
    seen: list[tuple[int, bytes]] = []

    def noted(request: Request, reply: list[bytes]) -> list[bytes]:
        if request.command == Cmd.WRITE:
            seen.append((request.flags & CmdFlag.PAYLOAD_LEN, reply[0][:4]))
        return reply

    server = Embedded({"": MemoryDisk(MIB)}, faults=Faults(on_reply=noted))
    async with listening(server, workdir) as uri:
        command = ["qemu-io", "-f", "raw", "-c", "write 0 512", uri]
        with trio.fail_after(SECONDS):
            await trio.run_process([*servers.prefix, *command], capture_stdout=True, stderr=STDOUT)
    assert seen == [(0, EXTENDED_REPLY_MAGIC.to_bytes(4))]
