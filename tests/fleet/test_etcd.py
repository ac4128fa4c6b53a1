"""How etcd is spoken to: a real one, of one member, and of three with TLS, certificates and passwords."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from gateway.fleet.etcd import (
    Etcd,
    EtcdForgotten,
    EtcdKey,
    EtcdPut,
    EtcdRefused,
    EtcdUnavailable,
)
from tests.fleet.etcds import PASSWORD, PATIENT_SECONDS, Members, running
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with running(tmp_path_factory.mktemp("etcd")) as members:
        yield members


async def answers(etcd: Etcd) -> None:
    """Wait until there is a leader."""
    with trio.fail_after(HANG_SECONDS):
        while True:
            try:
                await etcd.get("/t/none")
                return
            except EtcdUnavailable:
                await trio.sleep(0.05)


def opened(members: Members) -> Etcd:
    return Etcd(members.uris, context=members.context(), seconds=PATIENT_SECONDS)


async def test_keys_are_set_if_nothing_has_changed(one: Members) -> None:
    async with opened(one) as etcd:
        await answers(etcd)
        none = await etcd.get("/t/a")
        assert none == EtcdKey("/t/a", "", 0)
        assert await etcd.change([none], [EtcdPut("/t/a", "1"), EtcdPut("/t/é", "2")])
        assert not await etcd.change([none], [EtcdPut("/t/a", "3")])
        there = await etcd.get("/t/a")
        assert there.value == "1"
        assert await etcd.change([there], [], ["/t/a"])
        assert (await etcd.get("/t/a")).revision == 0
        assert (await etcd.get("/t/é")).value == "2"


async def test_all_keys_of_several_pages_are_of_one_revision(one: Members) -> None:
    async with opened(one) as etcd:
        await answers(etcd)
        names = [f"/p/{i:04}" for i in range(1100)]
        for begin in range(0, len(names), 100):  # etcd takes 128 at a time
            puts = [EtcdPut(each, each) for each in names[begin : begin + 100]]
            assert await etcd.change([], puts)
        assert await etcd.change([], [EtcdPut("/p0", "behind")])
        found, revision = await etcd.below("/p/")
        assert [each.key for each in found] == names
        assert revision >= max(each.revision for each in found)


async def test_a_lease_ends_and_its_keys_with_it(one: Members) -> None:
    async with opened(one) as etcd:
        await answers(etcd)
        lease, seconds = await etcd.grant(60)
        assert seconds == 60
        assert await etcd.keep_alive(lease) == 60
        assert await etcd.change([], [EtcdPut("/l/a", "1", lease)])
        assert (await etcd.get("/l/a")).lease == lease
        await etcd.revoke(lease)
        assert (await etcd.get("/l/a")).revision == 0
        assert await etcd.keep_alive(lease) == 0
        with pytest.raises(EtcdRefused, match="lease not found"):
            await etcd.change([], [EtcdPut("/l/a", "1", lease)])


async def test_nobody_there_is_said_of_each() -> None:
    async with Etcd(["http://127.0.0.1:1", "http://127.0.0.1:2"]) as etcd:
        with pytest.raises(EtcdUnavailable, match=r"127\.0\.0\.1:1: .*; http://127\.0\.0\.1:2: "):
            await etcd.get("/t/a")


async def test_what_is_no_etcd_is_said_so() -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with Etcd([f"http://127.0.0.1:{port}"]) as etcd:
            with pytest.raises(EtcdUnavailable, match="expected an answer of JSON, got b'hello'"):
                await etcd.get("/t/a")
        nursery.cancel_scope.cancel()


async def test_three_members_with_tls_certificates_and_passwords(tmp_path: Path) -> None:
    with running(tmp_path / "etcd", 3, tls=True) as members:
        async with opened(members) as etcd:
            await answers(etcd)
        members.etcdctl("user", "add", f"root:{PASSWORD}")
        members.etcdctl("user", "grant-role", "root", "root")
        members.etcdctl("auth", "enable")
        async with Etcd(members.uris, context=members.context(), seconds=PATIENT_SECONDS) as nobody:
            with pytest.raises(EtcdRefused):
                await nobody.get("/t/a")
        wrong = Etcd(
            members.uris,
            context=members.context(),
            user="root",
            password="x",
            seconds=PATIENT_SECONDS,
        )
        async with wrong:
            with pytest.raises(EtcdRefused, match="authentication failed"):
                await wrong.get("/t/a")
        right = Etcd(
            members.uris,
            context=members.context(),
            user="root",
            password=PASSWORD,
            seconds=PATIENT_SECONDS,
        )
        async with right:
            assert await right.change([], [EtcdPut("/t/a", "1")])
            right._token = "no.1"  # as after a member has forgotten it
            assert (await right.get("/t/a")).value == "1"
            # One member is lost, whichever it is, and then the majority.
            members.kill(0)
            await answers(right)
            assert (await right.get("/t/a")).value == "1"
            members.signal(signal.SIGSTOP, [1])
            quick = Etcd(
                members.uris, context=members.context(), user="root", password=PASSWORD, seconds=0.5
            )
            async with quick:
                with pytest.raises(EtcdUnavailable):
                    await quick.get("/t/a")
            members.signal(signal.SIGCONT, [1])
            await answers(right)
            assert (await right.get("/t/a")).value == "1"


def test_nothing_of_it_is_imported_otherwise() -> None:
    code = "import gateway.app.run, gateway.cli.serve, sys; print(*(m for m in sys.modules"
    code += " if m.partition('.')[0] in ('httpx', 'httpcore', 'anyio') or 'gateway.fleet' in m))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


async def test_changes_are_told_from_a_revision_on(one: Members) -> None:
    async with opened(one) as etcd:
        await answers(etcd)
        first = await etcd.change([], [EtcdPut("/w/a", "1")])
        await etcd.change([], [EtcdPut("/w0", "behind")])
        second = await etcd.change([], [EtcdPut("/w/b", "2")])
        found, last = await etcd.changes("/w/", first - 1, HANG_SECONDS)
        while last < second:  # they may come one by one
            more, last = await etcd.changes("/w/", last, HANG_SECONDS)
            found += more
        assert [(each.key, each.value, each.revision) for each in found] == [
            ("/w/a", "1", first),
            ("/w/b", "2", second),
        ]

        async def removed() -> None:
            assert await etcd.changes("/w/", second, HANG_SECONDS) == (
                [EtcdKey("/w/a", "", second + 1, gone=True)],
                second + 1,
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(removed)
            await etcd.change([], [], ["/w/a"])


async def test_where_nothing_changes_the_question_ends(one: Members) -> None:
    async with Etcd(one.uris, seconds=1) as etcd:
        await answers(etcd)
        last = await etcd.change([], [EtcdPut("/n/a", "1")])
        assert await etcd.changes("/n/", last, 0) == ([], last)


async def test_what_etcd_has_forgotten_is_said_so(one: Members) -> None:
    async with opened(one) as etcd:
        await answers(etcd)
        first = await etcd.change([], [EtcdPut("/f/a", "1")])
        last = await etcd.change([], [EtcdPut("/f/a", "2")])
        one.etcdctl("compact", str(last))
        with pytest.raises(EtcdForgotten):
            await etcd.changes("/f/", first - 1, HANG_SECONDS)
