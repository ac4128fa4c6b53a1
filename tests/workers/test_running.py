"""Several workers, as real processes: who serves what, who is told what, what is left when one is killed."""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gateway.embedded.personality import PLAIN
from gateway.wire.constants import Cmd, Errno, Rep
from gateway.wire.handshake import BlockSizes
from tests.embedded.peers import BLOCK_SIZE, Client
from tests.tools.volatile import VolatileServer
from tests.workers.running import (
    HOMELESS,
    NAMES,
    SIZE,
    disks,
    gateway,
    names_by_turns,
    server_at,
    state_of,
    until,
)

pytestmark = pytest.mark.real

COARSE = replace(PLAIN, block_sizes=BlockSizes(4096, 4096, 1 << 25))
"""A server whose blocks have 4 KiB."""

BLOCK = b"a" * 512

UPSTREAM = """\
[upstream.u]
uri = "nbd+unix:///?socket={at}/u.sock"
late-write-seconds = 0
"""
CANONICAL = UPSTREAM + "canonical-names = true\n"


async def ended(client: Client) -> bool:
    try:
        return await client.rest() == b""
    except trio.BrokenResourceError:  # it was killed with something unread
        return True


# --- Homes


async def test_a_disk_is_served_by_its_home_whoever_its_clients_came_to(tmp_path: Path) -> None:
    """And what a client writes that came to one worker is read by one that came to another."""
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, CANONICAL.format(at=tmp_path)) as running,
    ):
        names = names_by_turns(running.path)
        wanted = [0, 1] * (len(names) // 2)
        for name in names:
            one = await running.session(name, worker=0)
            other = await running.session(name, worker=1)
            assert await one.error(Cmd.WRITE, 512, data=BLOCK) == 0
            assert await other.read(512, 512) == BLOCK
        found = {(each["export"], each["worker"]) for each in await running.sessions()}
        assert found == set(zip(names, wanted, strict=True))
        await running.has_clients(2 * len(names))
        [listener] = (await running.status())["listeners"]
        assert listener["handshakes"]["handed-over"] == len(names)


async def test_a_disk_without_a_home_stays_where_its_client_came_in(tmp_path: Path) -> None:
    text = UPSTREAM.format(at=tmp_path) + (
        '[[export]]\nname = "d*"\nupstream = "u"\nread-only = true\n'
    )
    async with server_at(tmp_path / "u.sock", disks()), gateway(tmp_path, text) as running:
        await running.session("d0", worker=0)
        await running.session("d0", worker=1)
        assert sorted(each["worker"] for each in await running.sessions()) == [0, 1]


async def lose_and_flush(at: Path, *, homes: bool) -> list[int]:
    """Have a client write by one worker, the server lose that, and a client of another worker FLUSH. Give what
    the FLUSHes of both are answered.
    """
    server = VolatileServer(SIZE)
    async with (
        server_at(at / "u.sock", server),
        gateway(at, UPSTREAM.format(at=at), environment={} if homes else HOMELESS) as running,
    ):
        writer = await running.session(worker=0)
        other = await running.session(worker=1)
        assert await writer.error(Cmd.WRITE, 0, data=BLOCK) == 0
        assert server.crash() == len(BLOCK)
        server.start()
        return [await other.error(Cmd.FLUSH), await writer.error(Cmd.FLUSH)]


async def test_no_flush_is_a_lie_wherever_it_comes(tmp_path: Path) -> None:
    """The server says CAN_MULTI_CONN, so what one has written is what the other one's FLUSH is to cover."""
    assert await lose_and_flush(tmp_path, homes=True) == [Errno.EIO, Errno.EIO]


async def test_without_homes_it_would_be(tmp_path: Path) -> None:
    """The proof that the test before this can fail."""
    assert await lose_and_flush(tmp_path, homes=False) == [0, Errno.EIO]


async def write_parts(at: Path, *, homes: bool) -> tuple[int, bytes]:
    """Have two clients of two workers write parts of one block of the server's. Give how many READs of it were
    there before the first was answered, and what is there in the end.
    """
    server = VolatileServer(SIZE, COARSE)
    async with (
        server_at(at / "u.sock", server),
        gateway(at, UPSTREAM.format(at=at), environment={} if homes else HOMELESS) as running,
    ):
        one, other = [await running.session(worker=number, structured=False) for number in (0, 1)]
        server.disk.holds = lambda pending: pending.command == "read" and pending.offset == 0
        await one.send(Cmd.WRITE, 0, data=b"1" * 512)
        await server.disk.held()
        await other.send(Cmd.WRITE, 512, data=b"2" * 512)
        # What comes behind it has been looked at after it.
        await other.send(Cmd.READ, 4096, 4096)
        assert (await other.simple_reply())[0] == 2
        count = len(server.disk.pending)
        server.disk.release()
        for client in (one, other):
            assert (await client.simple_reply())[1] == 0
        return count, server.disk.store.read(0, 1024)


async def test_parts_of_a_block_are_written_by_one_at_a_time(tmp_path: Path) -> None:
    assert await write_parts(tmp_path, homes=True) == (1, b"1" * 512 + b"2" * 512)


async def test_without_homes_one_would_undo_the_other(tmp_path: Path) -> None:
    count, content = await write_parts(tmp_path, homes=False)
    assert count == 2
    assert content != b"1" * 512 + b"2" * 512


# --- Deaths


async def test_a_worker_that_dies_takes_its_own_sessions_along_and_no_others(
    tmp_path: Path,
) -> None:
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, CANONICAL.format(at=tmp_path)) as running,
    ):
        names = names_by_turns(running.path)
        wanted = [0, 1] * (len(names) // 2)
        pids = await running.pids()
        clients = [await running.session(name) for name in names]
        os.kill(pids[0], signal.SIGKILL)
        for client, home in zip(clients, wanted, strict=True):
            if home == 0:
                assert await ended(client)
            else:
                assert await client.error(Cmd.WRITE, 0, data=BLOCK) == 0
        # They are served again, by another process with the same number.
        for name, home in zip(names, wanted, strict=True):
            if home == 0:
                assert await (await running.session_again(name)).read(0, 512) == bytes(512)
        await running.has_clients(len(names))
        status = await running.status()
        assert [each["restarts"] for each in status["workers"]] == [1, 0]
        now = await running.pids()
        assert now[0] != pids[0]
        assert now[1] == pids[1]


@pytest.mark.parametrize("short", ["who has it", "the supervisor", "its home"])
async def test_a_client_without_room_is_refused_and_nobody_else_notices(
    tmp_path: Path, short: str
) -> None:
    """A flood takes the last descriptor of a process: what it is sent then costs its client, and no session."""
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, CANONICAL.format(at=tmp_path)) as running,
    ):
        here, there, *_more = names_by_turns(running.path)
        kept = [await running.session(there), await running.session(here)]
        came = await running.client(0)
        await came.structured()
        pids = {"who has it": 0, "its home": 1}
        pid = (await running.pids())[pids[short]] if short in pids else running.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        came.negotiation.go(there, BLOCK_SIZE)
        answer = await came.refused()
        assert answer.reply == Rep.ERR_SHUTDOWN
        assert "Too many open files" in answer.text
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        for client in (*kept, await running.session(there, 0)):
            await client.ask(Cmd.READ, 0, 512)
        assert not any(each["restarts"] for each in await running.there())
        assert "Traceback" not in running.said


async def test_without_their_supervisor_workers_take_nobody_and_drain(tmp_path: Path) -> None:
    """What is under way is finished: a WRITE that the server has not answered yet."""
    server = VolatileServer(SIZE)
    async with (
        server_at(tmp_path / "u.sock", server),
        gateway(tmp_path, UPSTREAM.format(at=tmp_path)) as running,
    ):
        pids = await running.pids()
        client = await running.session(structured=False)
        server.disk.hold("write")
        await client.send(Cmd.WRITE, 0, data=BLOCK)
        await server.disk.held()
        running.process.kill()

        async def nobody_listens() -> bool:
            try:
                stream = await trio.open_unix_socket(str(tmp_path / "g.sock"))
            except ConnectionRefusedError:
                return True
            await stream.aclose()
            return False

        await until(nobody_listens)
        server.disk.release()
        assert (await client.simple_reply())[1] == 0
        assert await ended(client)

        async def all_gone() -> bool:
            return all(state_of(pid) in "ZX" for pid in pids)

        await until(all_gone)


async def test_a_worker_that_is_told_to_end_drains_and_is_replaced(tmp_path: Path) -> None:
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, CANONICAL.format(at=tmp_path)) as running,
    ):
        names = names_by_turns(running.path)
        for pid in await running.pids():
            os.kill(pid, signal.SIGTERM)
        for number in range(running.workers):
            await running.replaced(number)
        for name in names:
            await running.session(name)


# --- Asking


async def test_a_pause_is_at_home_and_a_new_worker_has_it(tmp_path: Path) -> None:
    exports = "".join(f'[[export]]\nname = "{name}"\nupstream = "u"\n' for name in NAMES)
    text = CANONICAL.format(at=tmp_path) + exports
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, text) as running,
    ):
        [name, elsewhere, *_], home = names_by_turns(running.path), 0
        client = await running.session(name, worker=1 - home)
        assert (await running.ask("pause", export=name)).ok
        await client.send(Cmd.READ, 0, 512)
        assert (await running.status())["paused"] == [name]
        os.kill((await running.pids())[home], signal.SIGKILL)
        assert await ended(client)
        # Whether its home is there again or not:
        assert (await running.status())["paused"] == [name]
        assert (await running.ask("pause", export=elsewhere)).ok
        assert (await running.ask("resume", export=elsewhere)).ok
        await running.replaced(home)
        assert (await running.status())["paused"] == [name]
        assert (await running.ask("resume", export=name)).ok
        assert (await running.status())["paused"] == []
        await running.session(name)


async def test_what_is_said_of_all(tmp_path: Path) -> None:
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, CANONICAL.format(at=tmp_path)) as running,
    ):
        names = names_by_turns(running.path)
        clients = [await running.session(name) for name in names]
        for client in clients:
            assert await client.read(0, 512) == bytes(512)
        status = await running.status()
        assert status["sessions"] == len(names)
        answer = await running.ask("exports")
        assert answer.data is not None
        assert {each["export"] for each in answer.data["exports"]} == {*names}
        answer = await running.ask("upstreams")
        assert answer.data is not None
        [upstream] = answer.data["upstreams"]
        assert upstream["sessions"] == len(names)
        found = await running.sessions()
        assert (await running.ask("disconnect", session=found[0]["session"])).ok
        [gone] = [n for n, name in enumerate(names) if name == found[0]["export"]]
        assert await ended(clients[gone])
        assert not (await running.ask("disconnect", session="nobody-1")).ok
        refused = await running.ask("switch", export="d0", uri="nbd://127.0.0.1")
        assert "workers = 1" in refused.problems[0]
        [listener] = status["listeners"]
        drained = await running.ask("drain")
        assert drained.ok
        [listener] = (await running.status())["listeners"]
        assert listener["drained"]
        assert (await running.ask("undrain")).ok


# --- Reloads


async def test_all_reload_or_none(tmp_path: Path) -> None:
    first = CANONICAL.format(at=tmp_path)
    async with server_at(tmp_path / "u.sock", disks()), gateway(tmp_path, first) as running:
        client = await running.session("d0")
        more = f'[[listen]]\nuri = "nbd+unix:///?socket={tmp_path}/h.sock"\n'
        running.write(first + more)
        answer = await running.ask("reload")
        assert answer.ok, answer
        assert len((await running.status())["listeners"]) == 2
        second = await running.connected("h.sock")
        await second.go("d1")
        for text, why in (
            ("[[listen]]\n", "uri"),
            (UPSTREAM.format(at=tmp_path), "takes a restart"),
            (
                first + '[upstream.v]\nuri = "nbds://127.0.0.1"\ncertificates = "/none"\n',
                "export",
            ),
            (f'{first}[[listen]]\nuri = "nbd+unix:///?socket=/none/x.sock"\n', "/none"),
        ):
            running.write(text)
            answer = await running.ask("reload")
            assert not answer.ok
            assert why in "; ".join(answer.problems)
            assert len((await running.status())["listeners"]) == 2
        running.workers = 3
        running.write(first)
        assert "workers" in "; ".join((await running.ask("reload")).problems)
        running.workers = 2
        running.write(first)
        assert (await running.ask("reload")).ok
        assert len((await running.status())["listeners"]) == 1
        assert await client.read(0, 512) == bytes(512)
        assert await second.read(0, 512) == bytes(512)


async def test_a_worker_that_is_started_anew_has_the_configuration_in_force(tmp_path: Path) -> None:
    """Not what the file has become meanwhile, which is none."""
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, CANONICAL.format(at=tmp_path)) as running,
    ):
        names = names_by_turns(running.path)
        running.path.write_text("nothing of sense")
        pids = await running.pids()
        os.kill(pids[0], signal.SIGKILL)
        await running.replaced(0)
        for name in names:
            await running.session(name, worker=1)


# --- Bounds


async def test_the_most_clients_are_those_of_all_workers(tmp_path: Path) -> None:
    text = f'[[listen]]\nuri = "nbd+unix:///?socket={tmp_path}/h.sock"\nmax-connections = 3\n'
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, text + CANONICAL.format(at=tmp_path)) as running,
    ):

        async def connected() -> Client:
            return await running.connected("h.sock")

        there = []
        for count in range(1, 4):
            client = await connected()
            await client.go("d0")
            there.append(client)
            await running.has_clients(count, 1)
        for _ in range(8):
            with pytest.raises(EOFError):
                await (await connected()).greeting()
        await there.pop().stream.aclose()
        await running.has_clients(2, 1)
        await (await connected()).go("d1")


async def test_a_limit_of_a_rule_is_that_of_all_workers(tmp_path: Path) -> None:
    """And what a worker had that has died is free."""
    text = (
        '[[export]]\nname = "d*"\nupstream = "u"\n'
        f"[[rule]]\nwho = {{{{ unix-user = [{os.getuid()}, 12345] }}}}\n"
        'policies = [ {{ use = "limit", connections = 2 }} ]\n'
    )
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, (CANONICAL + text).format(at=tmp_path)) as running,
    ):
        [first, second, *_] = names_by_turns(running.path)

        async def refused(name: str) -> str:
            client = await running.connected("g.sock")
            await client.structured()
            client.negotiation.go(name, ())
            return (await client.refused()).text

        one = await running.session(first)
        other = await running.session(second)
        for name in (first, second):
            assert "2 connections are open, and 2 may be" in await refused(name)
        await one.send(Cmd.DISC)
        assert await one.rest() == b""
        one = await running.session_again(second, Rep.ERR_POLICY)
        os.kill((await running.pids())[1], signal.SIGKILL)
        assert await ended(one)
        assert await ended(other)
        await running.replaced(1)
        for name in (first, second):
            await running.session_again(name, Rep.ERR_POLICY)
        assert "2 connections are open, and 2 may be" in await refused(first)


async def test_a_rate_of_an_identity_is_that_of_all_workers(tmp_path: Path) -> None:
    """It is one that a client has at both homes of its disks: it takes so long as the rate takes, or longer."""
    rate, each = 50, 60
    text = (
        '[[export]]\nname = "d*"\nupstream = "u"\n[[rule]]\npolicies ='
        f' [ {{{{ use = "rate", operations-per-second = {rate}, per = "identity" }}}} ]\n'
    )
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, (CANONICAL + text).format(at=tmp_path)) as running,
    ):
        clients = [await running.session(name) for name in names_by_turns(running.path)[:2]]
        assert {each["worker"] for each in await running.sessions()} == {0, 1}

        async def work(client: Client) -> None:
            for _ in range(each):
                assert len(await client.read(0, 512)) == 512

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(work, client)
        saved_up = rate / 10 + 2 * rate / 40
        seconds = trio.current_time() - began
        assert len(clients) * each <= saved_up + rate * seconds + len(clients)


# --- TLS, and lists


async def test_over_tls_a_client_stays_where_its_tls_is_and_is_served_at_home(
    tmp_path: Path,
) -> None:
    pki = tmp_path / "pki"
    make = [sys.executable, "-m", "gateway", "pki", "init", str(pki)]
    await trio.run_process(make, capture_stdout=True)
    text = (
        f'[[listen]]\nuri = "nbds+unix:///?socket={tmp_path}/t.sock"\n'
        f'certificates = "{pki}"\nverify-client = false\n'
    )
    async with (
        server_at(tmp_path / "u.sock", disks()),
        gateway(tmp_path, text + CANONICAL.format(at=tmp_path)) as running,
    ):
        names = names_by_turns(running.path)
        data = os.urandom(SIZE)
        (tmp_path / "data").write_bytes(data)
        for name in names:
            uri = f"nbds+unix:///{name}?socket={tmp_path}/t.sock&tls-certificates={pki}"
            uri += "&tls-verify-peer=false"
            for pair in (["data", uri], [uri, "back"]):
                copy = ["nbdcopy", "--connections=1", *pair]
                await trio.run_process(copy, cwd=tmp_path)
            assert (tmp_path / "back").read_bytes() == data
        await running.has_clients(0, 1)
        _plain, listener = (await running.status())["listeners"]
        assert listener["handshakes"]["session"] == 2 * len(names)
        assert listener["handshakes"]["handed-over"] > 0


async def test_a_list_is_asked_of_the_home_and_a_command_is_started_once(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    text = '[upstream.c]\ncommand = ["nbdkit", "-f", "--exit-with-parent", "file", "{at}/disk"]\n'
    async with gateway(tmp_path, text.format(at=tmp_path)) as running:
        for worker in (0, 1):
            client = await running.client(worker)
            await client.greeting()
            client.negotiation.list_exports()
            assert [each.name for each in (await client.answered()).exports] == [""]
        sessions = [await running.session("", worker=worker) for worker in (0, 1)]
        for client in sessions:
            assert await client.read(0, 512) == bytes(512)
        pids = await running.pids()
        assert len({each["worker"] for each in await running.sessions()}) == 1
        assert len(servers_of(pids)) == 1


def servers_of(pids: list[int]) -> list[str]:
    """The nbdkits that were started by these processes, or by what they have started."""
    parents = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = each.read_text()
        except OSError:
            continue
        parents[int(each.parent.name)] = int(text.rpartition(")")[2].split()[1]), text
    found = []
    for pid, (_parent, text) in parents.items():
        above = pid
        while above in parents and above not in pids:
            above = parents[above][0]
        if above in pids and "(nbdkit)" in text:
            found.append(text)
    return found
