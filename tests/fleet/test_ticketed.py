"""Exports that are made at one gateway of a fleet while it runs, and are there at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.protocol.client_role import Refused
from gateway.wire.constants import Cmd
from tests.embedded.peers import Client
from tests.fleet.running import LIVES_SECONDS, LOOK_AGAIN_SECONDS, OneGateway, fleet
from tests.workers.running import server_at

pytestmark = pytest.mark.real

SIZE = 1 << 20
TICKETS = "[tickets]\netcd = true\n"


async def copied(gateway: OneGateway, export: str, to: Path) -> bool:
    """Have nbdcopy copy an export; say whether it could."""
    uri = f"nbd+unix:///{export}?socket={gateway.at}/{gateway.name}.sock"
    run = await trio.run_process(["nbdcopy", uri, to], check=False, capture_stderr=True)
    return run.returncode == 0


async def opened(gateway: OneGateway, export: str) -> Client | None:
    client = await gateway.connected()
    await client.structured()
    client.negotiation.go(export, ())
    return None if isinstance(await client.event(), Refused) else client


async def test_a_ticket_is_at_all_gateways_ends_at_all_and_outlives_them(tmp_path: Path) -> None:
    disk = MemoryDisk(SIZE)
    await disk.write(4096, b"x" * 512)
    async with (
        server_at(tmp_path / "u.sock", Server({"d": disk})),
        fleet(tmp_path, exports=TICKETS, lease=LIVES_SECONDS) as all_,
    ):
        a, b, c = all_.gateways.values()
        made = {"upstream": "u", "upstream-name": "d", "for": 3600}
        for export, more in (("long", {}), ("once", {"once": True})):
            answer = await a.ask("export-add", export=export, **made, **more)
            assert answer.ok, answer.problems
            for one in (b, c):
                while not any(
                    each["export"] == export
                    for each in (await one.ask("export-list")).data["tickets"]  # type: ignore[index]
                ):
                    await trio.sleep(LOOK_AGAIN_SECONDS)
        assert await copied(c, "long", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes()[4096:4608] == b"x" * 512

        session = await b.session("long")
        assert await session.error(Cmd.WRITE, data=b"y" * 512) == 0
        user = await a.session("once")
        assert await user.read(0, 512) == b"y" * 512
        [shown] = [
            each
            for each in (await a.ask("export-list")).data["tickets"]  # type: ignore[index]
            if each["export"] == "once"
        ]
        assert shown["used_by"]
        assert (await c.ask("export-renew", export="long", **{"for": 2})).ok
        assert await session.rest() == b""  # its time is over, wherever its home is
        for one in (a, b, c):
            while await opened(one, "long") is not None:
                await trio.sleep(LOOK_AGAIN_SECONDS)
        assert (await b.ask("export-add", export="kept", **made)).ok


async def test_a_ticket_is_there_after_all_were_killed(tmp_path: Path) -> None:
    async with (
        server_at(tmp_path / "u.sock", Server({"d": MemoryDisk(SIZE)})),
        fleet(tmp_path, exports=TICKETS) as all_,
    ):
        made = {"upstream": "u", "upstream-name": "d", "for": 3600, "export": "kept"}
        assert (await all_["a"].ask("export-add", **made)).ok
        for one in all_.gateways.values():
            one.kill()
        for one in all_.gateways.values():
            one.start()
        for one in all_.gateways.values():
            await one.serves()
        for one in all_.gateways.values():
            while not await copied(one, "kept", tmp_path / "copy"):
                await trio.sleep(LOOK_AGAIN_SECONDS)
