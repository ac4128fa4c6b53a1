"""How etcd is spoken to: a real one, of one member, and of three with TLS, certificates and passwords."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from gateway.fleet.answers import EtcdForgotten, EtcdKey, EtcdRefused, EtcdUnavailable
from gateway.fleet.etcd import Etcd, EtcdPut
from gateway.fleet.opening import Password
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


@asynccontextmanager
async def member(talk: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Have a member that is none; give its URI."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await talk(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def saying(
    body: bytes, status: bytes = b"200 OK"
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    head = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status, len(body))

    async def talk(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(head + body)

    return talk


CALLS: dict[str, Callable[[Etcd], Awaitable[object]]] = {
    "grant": lambda etcd: etcd.grant(10),
    "keep_alive": lambda etcd: etcd.keep_alive(7),
    "revoke": lambda etcd: etcd.revoke(7),
    "get": lambda etcd: etcd.get("/t/a"),
    "below": lambda etcd: etcd.below("/t/"),
    "change": lambda etcd: etcd.change([], [EtcdPut("/t/a", "1")]),
    "changes": lambda etcd: etcd.changes("/t/", 1, 0),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"hello\n", r"expected an answer of JSON, got b'hello"),
        (b"{}\n", r"expected an answer of etcd's, got b'{}"),
        (b'{"status": "ok"}\n', "expected an answer of etcd's"),
        (b'{"code": 503, "message": "no healthy upstream"}\n', "got .*no healthy upstream"),
        (b'{"error": "bad gateway"}\n', "got .*bad gateway"),
        (b'{"result": 5}\n', "expected an answer of etcd's"),
    ],
)
async def test_what_is_no_etcd_is_said_so(call: str, body: bytes, expected: str) -> None:
    """A proxy, or something else that listens there. It has done nothing and knows nothing."""
    async with (
        member(saying(body, b"503 Service Unavailable")) as uri,
        Etcd([uri], seconds=PATIENT_SECONDS) as etcd,
    ):
        with pytest.raises(EtcdUnavailable, match=expected):
            await CALLS[call](etcd)


@pytest.mark.parametrize("call", CALLS)
async def test_an_answer_without_what_belongs_to_it_is_none(call: str) -> None:
    header = b'"header": {"revision": "x"}'
    body = b'{%b, "kvs": [1], "succeeded": true, "result": {%b, "TTL": "x"}}\n' % (header, header)
    async with member(saying(body)) as uri, Etcd([uri], seconds=PATIENT_SECONDS) as etcd:
        if call == "revoke":  # of which nothing is read
            await CALLS[call](etcd)
            return
        with pytest.raises(EtcdUnavailable, match="expected an answer of etcd's"):
            await CALLS[call](etcd)


ERRORS = {
    "3.4": b'{"error": "%b", "message": "%b", "code": %d}',
    "3.6": b'{"code": %d, "message": "%b", "details": []}',
}
"""How etcd says an error, by the first version that says it so."""


@pytest.mark.parametrize("version", ERRORS)
@pytest.mark.parametrize(
    ("code", "text", "raised"),
    [
        (14, b"etcdserver: no leader", EtcdUnavailable),
        (5, b"etcdserver: requested lease not found", EtcdRefused),
    ],
)
async def test_an_error_is_one_in_all_versions(
    version: str, code: int, text: bytes, raised: type[Exception]
) -> None:
    values = (text, text, code) if version == "3.4" else (code, text)
    async with (
        member(saying(ERRORS[version] % values)) as uri,
        Etcd([uri], seconds=PATIENT_SECONDS) as etcd,
    ):
        for call in set(CALLS) - {"changes"}:
            with pytest.raises(raised, match=text.decode()):
                await CALLS[call](etcd)


async def test_of_many_that_find_one_gone_none_comes_back_to_it(one: Members) -> None:
    """They all move on by one member, and not each by one: else the last were at the first again."""
    came, all_came = 0, trio.Event()

    async def talk(stream: trio.SocketStream) -> None:
        nonlocal came
        await stream.receive_some()
        came += 1
        if came == 3:
            all_came.set()
        await all_came.wait()

    async with member(talk) as gone:
        members = [gone, one.uris[0], gone]
        async with Etcd(members, seconds=PATIENT_SECONDS) as etcd:
            with trio.fail_after(HANG_SECONDS):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(etcd.get, "/t/a")
    assert came == 3


async def test_a_token_from_before_the_users_were_changed_is_got_anew() -> None:
    old = saying(
        b'{"error": "x", "code": 3, "message": "etcdserver: revision of auth store is old"}'
    )
    there = saying(b'{"header": {"revision": "1"}}')
    gives = saying(b'{"header": {}, "token": "t"}')
    turns = iter([gives, old, gives, there])

    async def talk(stream: trio.SocketStream) -> None:
        await next(turns)(stream)

    async with (
        member(talk) as uri,
        Etcd([uri], user="u", password=lambda: "p", seconds=PATIENT_SECONDS) as etcd,
    ):
        assert (await etcd.get("/t/a")).revision == 0
    assert not [*turns]


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
            password=lambda: "x",
            seconds=PATIENT_SECONDS,
        )
        async with wrong:
            with pytest.raises(EtcdRefused, match="authentication failed"):
                await wrong.get("/t/a")
        right = Etcd(
            members.uris,
            context=members.context(),
            user="root",
            password=lambda: PASSWORD,
            seconds=PATIENT_SECONDS,
        )
        async with right:
            assert await right.change([], [EtcdPut("/t/a", "1")])
            right._token = "no.1"  # as after a member has forgotten it
            assert (await right.get("/t/a")).value == "1"
            # Another password, which is in the file before etcd has forgotten the token.
            file = tmp_path / "password"
            file.write_text(f"{PASSWORD}\n")
            password = Password(file)
            changed = Etcd(
                members.uris,
                context=members.context(),
                user="root",
                password=password,
                seconds=PATIENT_SECONDS,
            )
            async with changed:
                assert (await changed.get("/t/a")).value == "1"
                file.write_text("another\n")
                changed._token = "no.1"
                with pytest.raises(EtcdRefused, match="authentication failed"):
                    await changed.get("/t/a")
                file.write_text(f"{PASSWORD}\n")
                assert (await changed.get("/t/a")).value == "1"
                file.unlink()
                changed._token = "no.1"
                assert (await changed.get("/t/a")).value == "1"
            # One member is lost, whichever it is, and then the majority.
            members.kill(0)
            await answers(right)
            assert (await right.get("/t/a")).value == "1"
            members.signal(signal.SIGSTOP, [1])
            quick = Etcd(
                members.uris,
                context=members.context(),
                user="root",
                password=lambda: PASSWORD,
                seconds=0.5,
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
        with pytest.raises(EtcdForgotten):  # it was begun anew, or is behind
            await etcd.changes("/f/", last + 1000, HANG_SECONDS)
