"""A fleet as it runs: three gateways, a real etcd, and what befalls them."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from gateway.embedded import Server
from gateway.protocol.client_role import Refused
from gateway.wire.constants import Chunk, Cmd
from tests.embedded.peers import Client
from tests.fleet.running import (
    LIVES_SECONDS,
    LOOK_AGAIN_SECONDS,
    NotingDisk,
    OneGateway,
    fleet,
    until,
)
from tests.tools.patience import HANG_SECONDS
from tests.workers.running import server_at

pytestmark = pytest.mark.real

SIZE = 1 << 20
A, B, C = (letter * 512 for letter in (b"a", b"b", b"c"))


def noting() -> tuple[Server, NotingDisk]:
    disk = NotingDisk(SIZE)
    return Server({"d": disk}), disk


async def ended(client: Client) -> bool:
    try:
        return await client.rest() == b""
    except trio.BrokenResourceError:
        return True


async def written(gateway: OneGateway, data: bytes, *, flush: bool = False) -> bytes:
    """Write as a client does that comes again when it is cut off; give what was there before. A gateway that
    has its processor too seldom may lose its lease at any time.
    """
    while True:
        with suppress(EOFError, trio.BrokenResourceError):
            client = await gateway.session_again()
            await client.error(Cmd.FLUSH)  # what may be lost it hears first, and reads then
            before = await client.read(0, 512)
            well = await client.error(Cmd.WRITE, data=data) == 0
            if well and flush:
                well = await client.error(Cmd.FLUSH) == 0
            if well:
                return before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_whoever_waits_to_join_is_ended_by_a_signal(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Its name is taken for longer than anybody waits here."""
    async with fleet(tmp_path, names="ab", lease=LIVES_SECONDS) as running:
        config = (tmp_path / "a.toml").read_text()
        await running["b"].end()
        for each in ("sock", "control"):
            config = config.replace(f"/a.{each}", f"/z.{each}")
        own = config.partition('address = "')[2].partition('"')[0]
        free = (tmp_path / "b.toml").read_text().partition('address = "')[2].partition('"')[0]
        (tmp_path / "z.toml").write_text(config.replace(own, free))
        second = OneGateway(tmp_path, "z")
        second.start()
        try:
            await until(lambda: "waiting to join a fleet" in second.said)
            second.signal(number)
            assert second.process is not None
            assert await trio.to_thread.run_sync(second.process.wait, HANG_SECONDS) == 0
        finally:
            second.kill()


async def test_a_disk_has_one_home_whoever_its_clients_came_to(tmp_path: Path) -> None:
    server, _disk = noting()
    # Whoever leads a client to its home has to say that it is root.
    rule = '[[export]]\nname = "d"\nupstream = "u"\n[[rule]]\nwho = { unix-user = "root" }\n'
    async with (
        server_at(tmp_path / "u.sock", server),
        fleet(tmp_path, etcds=3, tls=True, exports=rule, lease=LIVES_SECONDS) as all_,
    ):
        clients = [await each.session() for each in all_.gateways.values()]
        for number, client in enumerate(clients):
            assert await client.error(Cmd.WRITE, 512 * number, data=A) == 0
        for client in clients:
            assert await client.read(0, 3 * 512) == 3 * A
            assert await client.error(Cmd.FLUSH) == 0
        home = await all_.home()
        at_home = await home.sessions()
        assert [each["upstream"] for each in at_home] == ["u"] * 3
        run = await trio.run_process(
            [sys.executable, "-m", "gateway", "fleet", "--json", "--config", tmp_path / "a.toml"],
            capture_stdout=True,
        )
        shown = json.loads(run.stdout)
        homes = {each["gateway"]: each["homes"] for each in shown["gateways"]}
        assert homes == {name: int(name == home.name) for name in "abc"}
        disk = f"unix {tmp_path}/u.sock d"
        assert shown["disks"] == [{"disk": disk, "home": home.name, "before": []}]
        for each in all_.others(home):
            [led] = await each.sessions()
            assert led["upstream"] == "u@home"
            assert led["session"] in {one["session"] for one in at_home}


async def test_a_home_that_is_killed_takes_its_own_clients_along_and_another_one_waits(
    tmp_path: Path,
) -> None:
    """The client knows: its connection is closed, and a FLUSH that was not answered was none."""
    server, disk = noting()
    async with server_at(tmp_path / "u.sock", server), fleet(tmp_path, late=1) as all_:
        first = await all_["a"].session()
        assert await first.error(Cmd.WRITE, data=A) == 0
        home = await all_.home()
        here = await home.session()
        home.kill()
        assert await ended(here)
        assert await written(all_.others(home)[0], B) == A
        new = await all_.home()
        assert new is not home
        assert f"before=['{home.name}']" in new.said
        assert "waiting for what an earlier home may have sent" in new.said
        assert set(disk.writers[1:]) == {b"b"}


async def test_a_home_that_ends_in_good_order_gives_its_disks_away(tmp_path: Path) -> None:
    """Nobody waits for late-write-seconds then, which would be longer than the test."""
    server, _disk = noting()
    async with (
        server_at(tmp_path / "u.sock", server),
        fleet(tmp_path, late=86400, lease=LIVES_SECONDS) as all_,
    ):
        client = await all_["a"].session()
        assert await client.error(Cmd.WRITE, data=A) == 0
        assert await client.error(Cmd.FLUSH) == 0
        home = await all_.home()
        here = await home.session()
        led = await all_.others(home)[0].session()
        assert await led.error(Cmd.WRITE, 512, data=B) == 0
        assert await led.error(Cmd.FLUSH) == 0
        await home.end()
        assert await ended(here)
        # Whoever came in elsewhere has lost nothing, and sees that the new home is there.
        assert await led.error(Cmd.WRITE, 512, data=C) == 0
        again = await all_.others(home)[0].session_again()
        assert await again.read(0, 512) == A
        assert "not given away" not in home.said


@pytest.mark.parametrize("fence", [True, False])
async def test_a_home_that_was_stopped_writes_nothing_when_it_goes_on(
    tmp_path: Path, fence: bool
) -> None:
    server, disk = noting()
    marks = tmp_path / "cut"
    (tmp_path / "fence").write_text(f'#!/bin/sh\necho "$1 $2" >>{marks}\n')
    (tmp_path / "fence").chmod(0o700)
    more = f'fence = ["{tmp_path}/fence"]\n' if fence else ""
    late = 86400 if fence else 0  # with a fence nobody waits for that
    async with (
        server_at(tmp_path / "u.sock", server),
        fleet(tmp_path, more=more, late=late) as all_,
    ):
        client = await all_["a"].session()
        assert await client.error(Cmd.WRITE, data=A) == 0
        home = await all_.home()
        old = await home.session()
        home.signal(signal.SIGSTOP)
        # It lies in the socket of the one that is stopped.
        cookie = await old.send(Cmd.WRITE, data=C)
        assert await written(all_.others(home)[0], B) == A
        home.signal(signal.SIGCONT)
        with suppress(EOFError, trio.BrokenResourceError):  # it may be told nothing
            assert (await old.reply(cookie))[-1].kind == Chunk.ERROR
        assert await written(all_.others(home)[1], B) == B
        assert disk.writers[0] == b"a"
        assert set(disk.writers[1:]) == {b"b"}
        if fence:
            assert marks.read_text().startswith(f"{home.name} nbds://127.0.0.1:")


async def test_without_a_majority_of_etcd_nothing_moves_and_nobody_writes(tmp_path: Path) -> None:
    server, disk = noting()
    async with server_at(tmp_path / "u.sock", server), fleet(tmp_path, etcds=3) as all_:
        await written(all_["a"], A, flush=True)  # else it is said to be lost with its link
        said = {each: len(each.said) for each in all_.gateways.values()}
        all_.members.signal(signal.SIGSTOP, [0, 1])
        for one, before in said.items():
            while "lease has run out" not in one.said[before:]:
                await trio.sleep(LOOK_AGAIN_SECONDS)
        # From here on nobody can serve it, whoever the home was, and however long this takes.
        client = await all_["b"].connected()
        await client.structured()
        with trio.move_on_after(1):
            client.negotiation.go("d", ())
            assert isinstance(await client.event(), Refused)
        assert set(disk.writers) == {b"a"}
        all_.members.signal(signal.SIGCONT, [0, 1])
        assert await written(all_["c"], B) == A
        assert disk.writers[-1] == b"b"


async def test_a_gateway_that_is_drained_gives_its_disks_away(tmp_path: Path) -> None:
    """Nobody waits for late-write-seconds, which would be longer than the test. A session that would be harmed
    keeps its disk there, and a deadline ends it in good order.
    """
    server, _disk = noting()
    async with (
        server_at(tmp_path / "u.sock", server),
        fleet(tmp_path, names="ab", late=86400, lease=LIVES_SECONDS) as all_,
    ):
        await (await all_["a"].session()).send(Cmd.DISC)
        first = await all_.home()
        [second] = all_.others(first)
        client = await first.session()
        assert await client.error(Cmd.WRITE, data=A) == 0
        await second.fleet_verb("drain", first.name, "--no-wait")
        while True:
            drained = (await first.ask("status")).data["fleet"]["drained"]  # type: ignore[index]
            if drained is not None and drained["stays"]:
                break
            await trio.sleep(LOOK_AGAIN_SECONDS)
        assert drained["stays"][0]["why"] == "1 session whose client came in here"
        assert await client.error(Cmd.WRITE, data=B) == 0
        await client.send(Cmd.DISC)
        said = await second.fleet_verb("drain", first.name)
        assert said.endswith(f"{first.name}: all disks have gone (1)\n") or "(0)" in said
        other = await first.session()  # it came in there, and its home is the other one
        assert await other.read(0, 512) == B
        assert await all_.home() is second
        await other.send(Cmd.DISC)

        assert f"{first.name} takes disks again" in await second.fleet_verb("undrain", first.name)
        kept = await second.session()
        assert await kept.error(Cmd.WRITE, data=C) == 0
        await second.fleet_verb("drain", second.name, "--deadline", "0")
        assert await ended(kept)
        again = await second.session()
        assert await again.read(0, 512) == C
        assert await all_.home() is first
        assert "drained" in await second.fleet_verb()
        assert "not given away" not in first.said + second.said


async def test_what_a_fleet_does_not_do_yet_is_refused(tmp_path: Path) -> None:
    server, _disk = noting()
    async with (
        server_at(tmp_path / "u.sock", server),
        fleet(tmp_path, names="a", lease=LIVES_SECONDS) as all_,
    ):
        for verb in ("reload", "switch", "upgrade"):
            answer = await all_["a"].ask(verb)
            assert not answer.ok
            assert "fleet" in answer.problems[0]


async def test_the_log_says_which_certificates_of_the_fleet_end(tmp_path: Path) -> None:
    async with fleet(tmp_path, names="ab", lease=LIVES_SECONDS) as running:
        said = f"of=fleet.certificates what='{tmp_path}/pki/server-cert.pem: "
        await until(lambda: said in running["a"].said)
