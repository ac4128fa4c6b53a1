"""Clients that came in at another gateway than the home of their disk, and what befalls that."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import cast

import pytest
import trio

from gateway.config import parse
from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.embedded.personality import PLAIN
from gateway.fleet.door import ask_if_kept, lead
from gateway.handover.given import DiskSite, Given
from gateway.identity import Identity
from gateway.tls.credentials import client_credentials
from gateway.wire.constants import Cmd, CmdFlag, Errno, Info
from gateway.wire.handshake import BlockSizes
from tests.embedded.peers import Client
from tests.fleet.running import (
    LIVES_SECONDS,
    LOOK_AGAIN_SECONDS,
    OneGateway,
    RunningFleet,
    fleet,
    until,
)
from tests.workers.running import server_at

pytestmark = pytest.mark.real

BLOCK = 512
BLOCKS = 64
FLUSH_EVERY = 8
A, B = b"a" * BLOCK, b"b" * BLOCK


SIZES = BlockSizes(4096, 4096, 1 << 20)
LARGE_BLOCKS = replace(PLAIN, block_sizes=SIZES)


def blank() -> Server:
    return Server({"d": MemoryDisk((BLOCKS + 1) * BLOCK)})


@dataclass
class Load:
    """A client that writes, looks whether it is there, and FLUSHes. `stop` ends it."""

    client: Client
    written: dict[int, bytes] = field(default_factory=dict)
    rounds: int = 0
    errors: list[tuple[str, int]] = field(default_factory=list)
    stop: bool = False

    async def run(self) -> None:
        for number in count():
            if self.stop:
                return
            at = number % BLOCKS
            data = number.to_bytes(4) * (BLOCK // 4)
            self._note("WRITE", await self.client.error(Cmd.WRITE, at * BLOCK, data=data))
            self.written[at] = data
            if number % FLUSH_EVERY == FLUSH_EVERY - 1:
                self._note("FLUSH", await self.client.error(Cmd.FLUSH))
                self.rounds += 1
                await self.verify()

    async def verify(self) -> None:
        for at, data in self.written.items():
            assert await self.client.read(at * BLOCK, BLOCK) == data

    def _note(self, what: str, error: int) -> None:
        if error:
            self.errors.append((what, error))

    async def goes_on(self) -> None:
        """Wait until it has done more."""
        rounds = self.rounds
        await until(lambda: self.rounds > rounds + 1)


async def home_and_entry(all_: RunningFleet) -> tuple[OneGateway, OneGateway]:
    """Have a home, and give it, with another gateway."""
    client = await all_["a"].session()
    assert await client.error(Cmd.READ, 0, BLOCK) == 0
    await client.stream.aclose()
    for each in all_.gateways.values():
        while await each.sessions():
            await trio.sleep(LOOK_AGAIN_SECONDS)
    home = await all_.home()
    return home, all_.others(home)[0]


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_a_home_that_is_killed_costs_one_eio_and_no_connection(
    tmp_path: Path, names: str
) -> None:
    """Of two gateways the one where the client came in is the home then, of three any other may be."""
    rule = '[[export]]\nname = "d"\nupstream = "u"\n[[rule]]\nwho = { unix-user = "root" }\n'
    async with (
        server_at(tmp_path / "u.sock", blank()),
        fleet(tmp_path, names=names, late=1, exports=rule) as all_,
    ):
        home, entry = await home_and_entry(all_)
        load = Load(await entry.session())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            await load.goes_on()
            home.kill()
            await load.goes_on()
            load.stop = True
        assert load.errors == [("FLUSH", Errno.EIO)]
        await load.verify()
        new = await all_.home()
        assert new is not home
        [at_home] = [each for each in await new.sessions() if each["upstream"] == "u"]
        [led] = [each for each in await entry.sessions() if each["upstream"] == "u@home"]
        assert (at_home["who"], at_home["client"]) == (led["who"], led["client"])
        if new is not entry:
            assert at_home["session"] == led["session"]


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_a_home_that_is_drained_costs_no_error_at_all(tmp_path: Path, names: str) -> None:
    """Its disk is given away while sessions write, and have not flushed. Nobody waits for late-write-seconds,
    which would be longer than the test. Of two gateways the one where the clients came in is the home then,
    until it is drained itself.
    """
    async with (
        server_at(tmp_path / "u.sock", blank()),
        fleet(tmp_path, names=names, late=86400, lease=LIVES_SECONDS) as all_,
    ):
        home, entry = await home_and_entry(all_)
        load, quiet = Load(await entry.session()), await entry.session()
        assert await quiet.error(Cmd.WRITE, BLOCKS * BLOCK, data=A) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            await load.goes_on()
            for each in [home, entry] if names == "ab" else [home]:
                said = await home.fleet_verb("drain", each.name)
                assert f"{each.name}: all disks have gone" in said
                assert await all_.home() is not each
                await load.goes_on()
                assert await quiet.error(Cmd.FLUSH) == 0
                assert await quiet.error(Cmd.WRITE, BLOCKS * BLOCK, data=B) == 0
                await home.fleet_verb("undrain", each.name)
            load.stop = True
        assert load.errors == []
        await load.verify()
        assert await quiet.error(Cmd.FLUSH) == 0
        assert await quiet.read(BLOCKS * BLOCK, BLOCK) == B
        assert "not given away" not in home.said + entry.said
        assert "may be lost" not in home.said + entry.said


async def test_a_client_that_has_begun_to_negotiate_is_not_led_on_when_its_disk_has_moved(
    tmp_path: Path,
) -> None:
    """A home that is drained would stay on its way to the next one, and whoever ends it would break that."""
    async with (
        server_at(tmp_path / "u.sock", blank()),
        fleet(tmp_path, late=86400, lease=LIVES_SECONDS) as all_,
    ):
        home, entry = await home_and_entry(all_)
        await entry.fleet_verb("drain", entry.name)  # it is not to be the next one
        client = await entry.connected()
        await client.structured()
        client.negotiation.ask_contexts("d", ["base:allocation"], select=False)
        await client.answered()  # the home has taken it
        said = await entry.fleet_verb("drain", home.name)
        assert f"{home.name}: all disks have gone" in said
        client.negotiation.go("d", ())
        await client.answered()
        assert await client.error(Cmd.WRITE, data=A) == 0
        assert await home.sessions() == []
        await home.end()
        assert await client.error(Cmd.FLUSH) == 0
        assert await client.read(0, BLOCK) == A


async def test_a_client_that_is_led_here_again_is_so_when_its_older_connection_ends(
    tmp_path: Path,
) -> None:
    """For a drain as well: whoever leads a client goes after its disk."""
    async with (
        server_at(tmp_path / "u.sock", blank()),
        fleet(tmp_path, names="ab", late=86400, lease=LIVES_SECONDS) as all_,
    ):
        home, _entry = await home_and_entry(all_)
        address = parse((tmp_path / f"{home.name}.toml").read_text(), "test").fleet
        assert address is not None
        credentials = client_credentials(tmp_path / "pki", hostname="127.0.0.1")
        site = DiskSite.at(frozenset({("unix", f"{tmp_path}/u.sock")}), "d")
        door = ("UNIX", "", 0)
        given = Given(0, "abc-1", door, Identity.at("192.0.2.1", 7), site, 0.0, None)
        clients = []
        for way in ("one", "two"):
            led = replace(given, way=way)
            stream = await lead(address.address, credentials, led, LIVES_SECONDS, LIVES_SECONDS)
            clients.append(Client(cast("trio.SocketStream", stream)))
            await clients[-1].go("d")
        assert [each["session"] for each in await home.sessions()] == ["abc-1"] * 2
        await clients[0].stream.aclose()
        while len(await home.sessions()) == 2:
            await trio.sleep(LOOK_AGAIN_SECONDS)
        await home.fleet_verb("drain", home.name, "--no-wait")
        while await home.sessions():
            drained = (await home.ask("status")).data["fleet"]["drained"]  # type: ignore[index]
            assert not drained or not drained["stays"]
            await trio.sleep(LOOK_AGAIN_SECONDS)
        assert await clients[1].rest() == b""
        for way in ("one", "two"):
            kept = await ask_if_kept(address.address, credentials, way, LIVES_SECONDS)
            assert kept is (way == "two")
        await clients[1].stream.aclose()


async def test_with_multi_conn_all_are_told_of_a_home_that_was_killed(tmp_path: Path) -> None:
    """What was written by way of one gateway a FLUSH at another one speaks for."""
    async with server_at(tmp_path / "u.sock", blank()), fleet(tmp_path, late=1) as all_:
        home, _entry = await home_and_entry(all_)
        one, other = [await each.session() for each in all_.others(home)]
        assert await one.error(Cmd.WRITE, data=A) == 0
        home.kill()
        assert [await other.error(Cmd.FLUSH) for _ in range(2)] == [Errno.EIO, 0]
        assert [await one.error(Cmd.FLUSH) for _ in range(2)] == [Errno.EIO, 0]
        assert await other.read(0, BLOCK) == A


async def test_a_home_that_is_stopped_is_left(tmp_path: Path) -> None:
    """Its connections stay open, and nothing comes from it any more."""
    async with server_at(tmp_path / "u.sock", blank()), fleet(tmp_path) as all_:
        home, entry = await home_and_entry(all_)
        client = await entry.session()
        assert await client.error(Cmd.WRITE, data=A, flags=CmdFlag.FUA) == 0
        home.signal(signal.SIGSTOP)
        assert await client.error(Cmd.WRITE, data=B) == 0
        assert await all_.home() is not home
        assert "home that says nothing is left" in entry.said


async def test_what_the_home_tells_and_refuses_the_client_is_told(tmp_path: Path) -> None:
    exports = """\
[[export]]
name = "d"
upstream = "u"
description = "a disk"
synthesise-allocation = true
policies = [{ use = "window", offset = 4096, size = 8192 }, { use = "limit", connections = 2 }]
"""
    async with (
        server_at(tmp_path / "u.sock", blank()),
        fleet(tmp_path, exports=exports, lease=LIVES_SECONDS) as all_,
    ):
        home, entry = await home_and_entry(all_)
        told = []
        for gateway in (home, entry):
            client = await gateway.connected()
            wanted = (Info.BLOCK_SIZE, Info.DESCRIPTION, Info.NAME)
            told.append(await client.go("d", contexts=["base:allocation"], wanted=wanted))
            # What the window does is done once: what is written here is seen there.
            assert await client.read(0, 2) == b"a" * (len(told) - 1) + bytes(3 - len(told))
            assert await client.error(Cmd.WRITE, data=b"a") == 0
        assert told[0] == told[1]
        refused = []
        for gateway in (home, entry):
            client = await gateway.connected()
            await client.structured()
            client.negotiation.go("d", ())
            refused.append(await client.refused())
        assert refused[0] == refused[1]
        assert "connections" in refused[0].text


async def test_blocks_are_put_together_at_the_home_alone(tmp_path: Path) -> None:
    """Two gateways that each read a block, change their part and write it back would undo each other's work."""
    server = Server({"d": MemoryDisk(BLOCKS * BLOCK)}, LARGE_BLOCKS)
    async with (
        server_at(tmp_path / "u.sock", server),
        fleet(tmp_path, names="ab", lease=LIVES_SECONDS) as all_,
    ):
        home, entry = await home_and_entry(all_)
        client = await entry.connected()
        answered = await client.go("d")
        assert answered.block_sizes == SIZES
        assert await client.error(Cmd.WRITE, 3, data=b"abc") == 0
        assert await client.read(2, 5) == b"\0abc\0"
        [at_home] = await home.sessions()
        assert at_home["requests"] == {"WRITE": 1, "READ": 1}
