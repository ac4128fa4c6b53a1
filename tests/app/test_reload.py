"""Another configuration while the gateway runs: what is kept, and that a failure leaves all as it was."""

from __future__ import annotations

import datetime as dt
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway import clock
from gateway.admin.control import ControlAnswer
from gateway.app import reload as reloading
from gateway.app.reload import (
    SETTLE_SECONDS,
    STORM_SECONDS,
    TIMED_SECONDS,
    Reloader,
)
from gateway.app.source import LOOK_AT_FILE_SECONDS
from gateway.config import load
from gateway.embedded import MemoryDisk
from gateway.embedded import Server as Embedded
from gateway.hub.ends import Cause
from gateway.protocol.client_role import Refused
from gateway.wire.constants import Cmd, Rep
from tests.app.houses import BLOCK, EXPORT, LISTEN, MEMORY, house, until

pytestmark = pytest.mark.real

MIB = 1 << 20


OTHER = LISTEN.replace("g.sock", "h.sock")
FILE = '[upstream.m]\nuri = "file:DIR/disk"\n'
EXPORTS = EXPORT + EXPORT.replace('"x"', '"y"')
EVERYBODY = '[[rule]]\nexports = "*"\n'
DENY = '[[rule]]\nexports = "x"\ndeny = true\n'


# --- What is kept


KEPT = [
    (LISTEN + MEMORY, LISTEN + MEMORY, "1 kept", "1 kept"),
    (LISTEN + MEMORY, LISTEN + MEMORY + "connect-seconds = 3\n", "1 kept", "1 changed"),
    (LISTEN + MEMORY, LISTEN + MEMORY.replace("1M", "2M"), "1 kept", "1 changed"),
    (LISTEN + MEMORY, LISTEN + MEMORY.replace(".m]", ".n]"), "1 kept", "1 new, 1 gone"),
    (LISTEN + MEMORY, LISTEN + OTHER + MEMORY, "1 kept, 1 new", "1 kept"),
    (LISTEN + OTHER + MEMORY, OTHER + MEMORY, "1 kept, 1 gone", "1 kept"),
    (LISTEN + MEMORY, LISTEN + "max-connections = 3\n" + MEMORY, "1 changed", "1 kept"),
    (LISTEN + MEMORY, OTHER + MEMORY, "1 new, 1 gone", "1 kept"),
]


@pytest.mark.parametrize(("before", "after", "listeners", "upstreams"), KEPT)
async def test_what_is_kept(
    workdir: Path, before: str, after: str, listeners: str, upstreams: str
) -> None:
    async with house(workdir, before) as gateway:
        old = gateway.now.servers
        answer = await gateway.reload(after)
        assert answer.ok
        assert answer.problems == ()
        assert answer.done[:2] == (f"listeners: {listeners}", f"upstreams: {upstreams}")
        for name, server in gateway.service.servers.items():
            assert (server is old.servers.get(name)) == (upstreams == "1 kept")
        config = load(gateway.path)
        assert gateway.service.config == config
        assert [each.settings for each in gateway.now.doors.listeners] == list(config.listen)
        for listen in config.listen:
            assert listen.uri.socket_path is not None
            name = Path(listen.uri.socket_path).stem
            await (await gateway.session("", name)).stream.aclose()
        for name in {"g", "h"} - {Path(str(each.uri.socket_path)).stem for each in config.listen}:
            assert not (workdir / f"{name}.sock").exists()


@pytest.mark.parametrize(
    "after", [MEMORY, MEMORY + "quirks = []\n", MEMORY.replace(".m]", ".n]")], ids=str.split
)
async def test_a_disk_in_memory_keeps_its_content(workdir: Path, after: str) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        first = await gateway.session()
        assert await first.error(Cmd.WRITE, 0, 512, data=BLOCK) == 0
        assert (await gateway.reload(LISTEN + after)).ok
        assert await (await gateway.session()).read(0, 512) == BLOCK
        assert await first.read(0, 512) == BLOCK


async def test_a_session_stays_where_it_is_and_new_ones_go_where_the_file_says(
    workdir: Path,
) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        first = await gateway.session()
        await first.error(Cmd.WRITE, 0, 512, data=BLOCK)
        loaded = gateway.service.config_loaded
        assert not (await gateway.reload("nonsense")).ok
        assert gateway.service.config_loaded == loaded
        assert (await gateway.reload(LISTEN + MEMORY.replace("1M", "2M"))).ok
        assert gateway.service.config_loaded > loaded
        second = await gateway.session()
        assert await second.read(0, 512) == bytes(512)
        assert await first.read(0, 512) == BLOCK


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_file_is_closed_when_the_last_has_gone_who_was_there(workdir: Path) -> None:
    def is_open() -> bool:
        links = Path("/proc/self/fd").iterdir()
        return any(link.readlink() == disk for link in links if os.path.lexists(link))

    disk = workdir / "disk"
    disk.write_bytes(bytes(MIB))
    async with house(workdir, LISTEN + FILE) as gateway:
        first = await gateway.session()
        assert (await gateway.reload(LISTEN + MEMORY)).ok
        second = await gateway.session()
        assert is_open()
        assert await first.read(0, 512) == bytes(512)
        await first.send(Cmd.DISC)
        await until(lambda: not is_open())
        assert await second.read(0, 512) == bytes(512)
        assert not gateway.now.leaving


async def test_what_is_left_is_taken_up_again(workdir: Path) -> None:
    """Two processes on one disk would spoil it."""
    started = workdir / "started"
    script = f"echo x >> {started}; exec nbdkit -f memory 1M"
    command = LISTEN + f'[upstream.m]\ncommand = ["sh", "-c", "{script}"]\n'
    async with house(workdir, command) as gateway:
        first = await gateway.session()
        [backend] = gateway.now.servers.backends.values()
        await gateway.reload(LISTEN + MEMORY)
        assert gateway.now.leaving == {backend: 0}
        await gateway.reload(command)
        assert backend not in gateway.now.leaving
        await first.send(Cmd.DISC)
        await until(lambda: not gateway.service.running)
        assert await (await gateway.session()).read(0, 512) == bytes(512)
        assert started.read_text() == "x\n"
        await gateway.reload(LISTEN + MEMORY)
        assert gateway.now.leaving[backend] == 2


async def test_a_process_ends_when_the_last_has_gone_who_was_there(workdir: Path) -> None:
    pid = workdir / "pid"
    script = f"echo $$ > {pid}; exec nbdkit -f memory 1M"
    command = LISTEN + f'[upstream.m]\ncommand = ["sh", "-c", "{script}"]\n'
    async with house(workdir, command) as gateway:
        first = await gateway.session()
        process = Path("/proc") / pid.read_text().strip()
        await gateway.reload(LISTEN + MEMORY)
        assert await first.read(0, 512) == bytes(512)
        assert process.exists()
        await first.send(Cmd.DISC)
        await until(lambda: not process.exists())
        await until(lambda: not gateway.now.leaving)


async def test_credentials_come_go_and_stay(workdir: Path) -> None:
    import trustme

    from tests.tls.handshakes import directory

    ca = trustme.CA()
    directory(workdir / "pki", ca, server=ca.issue_cert("localhost"))
    secure = LISTEN + 'tls = "require"\ncertificates = "DIR/pki"\n'
    async with house(workdir, LISTEN + MEMORY) as gateway:
        assert gateway.now.keyring is None
        await gateway.reload(secure + MEMORY)
        keyring = gateway.now.keyring
        assert keyring is not None
        assert gateway.watched == [keyring]
        ring = keyring.listener(gateway.now.doors.listeners[0].settings)
        assert ring is not None
        await gateway.reload(secure + "max-connections = 5\n" + MEMORY)
        assert keyring.listener(gateway.now.doors.listeners[0].settings) is ring
        await gateway.reload(LISTEN + MEMORY)
        assert keyring.listener(gateway.now.doors.listeners[0].settings) is None
        assert gateway.now.keyring is keyring
        assert gateway.watched == [keyring]


async def test_which_credentials_are_exchanged_is_told(workdir: Path) -> None:
    """Also where the configuration is of no use, and stays as it was."""
    import trustme

    from tests.tls.handshakes import crl_of, directory

    ca = trustme.CA()
    pki = directory(workdir / "pki", ca, server=ca.issue_cert("localhost"))
    crl = pki / "ca-crl.pem"
    secure = LISTEN + 'tls = "require"\ncertificates = "DIR/pki"\n'
    async with house(workdir, LISTEN + MEMORY) as gateway:

        async def told(text: str) -> tuple[bool, list[str], tuple[str, ...]]:
            answer = await gateway.reload(text)
            credentials = [each for each in answer.done if each.startswith("credentials")]
            return answer.ok, credentials, answer.problems

        [listener] = gateway.now.doors.listeners
        who = str(listener.settings.uri)
        assert await told(secure + MEMORY) == (True, [f"credentials loaded: {who}"], ())
        assert await told(secure + MEMORY) == (True, [], ())
        crl.write_bytes(crl_of(ca))
        exchanged = [f"credentials exchanged: {who} ({crl} is new)"]
        assert await told(secure + MEMORY) == (True, exchanged, ())
        crl.unlink()
        gone = f"the credentials of {who} stay as they were: {crl}: is gone; to go without it, start anew"
        assert await told(secure + MEMORY) == (True, [], (gone,))
        crl.write_bytes(crl_of(ca))
        ok, credentials, problems = await told("nonsense")
        assert (ok, credentials) == (False, [f"credentials exchanged: {who} ({crl} has changed)"])
        assert len(problems) == 1


async def test_mode_of_a_socket_that_stays(workdir: Path) -> None:
    path = workdir / "g.sock"
    async with house(workdir, LISTEN + MEMORY) as gateway:
        usual = stat.S_IMODE(path.stat().st_mode)
        await gateway.reload(LISTEN + 'socket-mode = "0600"\n' + MEMORY)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await gateway.reload(LISTEN + MEMORY)
        assert stat.S_IMODE(path.stat().st_mode) == usual


async def test_the_control_socket_comes_stays_moves_and_goes(workdir: Path) -> None:
    control = '[control]\nsocket = "DIR/c"\n'
    async with house(workdir, LISTEN + MEMORY) as gateway:
        await gateway.reload(LISTEN + MEMORY + control)
        assert stat.S_IMODE((workdir / "c").stat().st_mode) == 0o600
        await gateway.reload(LISTEN + MEMORY + control)
        assert len(gateway.obeyed) == 1
        await gateway.reload(LISTEN + MEMORY + control.replace("/c", "/d"))
        assert not (workdir / "c").exists()
        assert (workdir / "d").exists()
        await gateway.reload(LISTEN + MEMORY)
        assert not (workdir / "d").exists()
        assert len(gateway.obeyed) == 2


# --- What fails


def _is_file(workdir: Path) -> None:
    (workdir / "file").write_text("precious")


def _is_taken(workdir: Path) -> None:
    taken = socket.socket(socket.AF_UNIX)
    taken.bind(str(workdir / "taken.sock"))
    taken.listen()
    _TAKEN.append(taken)


_TAKEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _TAKEN:
        _TAKEN.pop().close()


CHANGED = OTHER + LISTEN + 'socket-mode = "0600"\n'
DISK = '[upstream.d]\nuri = "file:DIR/g.toml"\n'
ALSO = '[[export]]\nname = ""\nupstream = "m"\n'
FAILURES = {
    "not TOML": ("[[listen\n", "g.toml:1: "),
    "a wrong value": (LISTEN + '[upstream.m]\nuri = "memry:1M"\n', "g.toml:4: upstream.m.uri: "),
    "contradictions": (CHANGED + MEMORY + MEMORY.replace(".m", ".n"), "g.toml:8: upstream.n: "),
    "a file that is missing": (
        CHANGED + DISK + '[upstream.m]\nuri = "file:DIR/missing"\n' + ALSO,
        "g.toml: upstream m: cannot open",
    ),
    "an address in use": (
        CHANGED + LISTEN.replace("g.sock", "taken.sock") + DISK + MEMORY + ALSO,
        "taken.sock: Address already in use",
    ),
    "an address that is a file": (
        CHANGED + LISTEN.replace("g.sock", "file") + MEMORY,
        "the file exists and is not a socket",
    ),
    "an owner that is not there": (
        OTHER + LISTEN + 'socket-mode = "0600"\nsocket-owner = "nobody-of-that-name"\n' + MEMORY,
        "cannot give",
    ),
    "certificates that are missing": (
        CHANGED + 'tls = "require"\ncertificates = "DIR/pki"\n' + MEMORY,
        "g.toml: listener ",
    ),
    "a control socket that is a file": (
        CHANGED + DISK + MEMORY + ALSO + '[control]\nsocket = "DIR/file"\n',
        "cannot listen on",
    ),
    "a control socket in use": (
        CHANGED + MEMORY + '[control]\nsocket = "DIR/taken.sock"\n',
        "Address already in use",
    ),
    "a quirk that is not there": (
        CHANGED + DISK + MEMORY + 'quirks = ["x"]\n' + ALSO,
        "there is no quirk 'x'",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_what_fails_changes_nothing(workdir: Path, failure: str) -> None:
    text, words = FAILURES[failure]
    _is_file(workdir)
    _is_taken(workdir)
    before = LISTEN + MEMORY + '[control]\nsocket = "DIR/c"\n[log]\nlevel = "error"\n'
    async with house(workdir, before) as gateway:
        client = await gateway.session()
        service, now = gateway.service, gateway.now
        were = (service.config, service.access, service.servers, now.servers, now.keyring)
        doors = (list(now.doors.listeners), now.doors.control)
        settings = [each.settings for each in now.doors.listeners]
        files = {path.name: path.lstat().st_mode for path in workdir.iterdir()}
        count = descriptors()
        answer = await gateway.reload(text)
        assert not answer.ok
        assert answer.done == ()
        assert any(words in problem for problem in answer.problems), answer
        said = [line["why"] for line in gateway.events("configuration stays as it was")]
        assert said == list(answer.problems)
        assert (service.config, service.access, service.servers, now.servers, now.keyring) == were
        assert (now.doors.listeners, now.doors.control) == doors
        assert [each.settings for each in now.doors.listeners] == settings
        assert {path.name: path.lstat().st_mode for path in workdir.iterdir()} == files
        assert descriptors() == count
        assert gateway.reloader.present.age == 0
        assert await client.read(0, 512) == bytes(512)
        await gateway.session()
        # And it is no hindrance to the next.
        assert (await gateway.reload(before)).ok


async def test_a_file_that_is_gone(workdir: Path) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        gateway.path.unlink()
        answer = await gateway.reload()
        assert answer.problems == (f"{gateway.path}: cannot be read: No such file or directory",)


async def test_a_bug_in_between_ends_nothing(workdir: Path) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    async with house(workdir, LISTEN + MEMORY) as gateway:
        gateway.loading = bug
        answer = await gateway.reload()
        assert not answer.ok
        assert "ZeroDivisionError" in answer.problems[0]
        assert gateway.events("reload failed")
        await gateway.session()


async def test_what_takes_too_long_is_given_up(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    import threading

    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait()

    async with house(workdir, LISTEN + MEMORY) as gateway:
        gateway.loading = hang
        answers: list[ControlAnswer] = []

        async def ask() -> None:
            answers.append(await gateway.reload())

        gateway.nursery.start_soon(ask)
        await until(hangs.is_set)
        mock_clock.jump(reloading.RELOAD_SECONDS + 1)
        await until(lambda: answers)
        goes_on.set()
        assert not answers[0].ok
        assert "longer than 30 s" in answers[0].problems[0]


async def test_without_a_file(workdir: Path) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        reloader = Reloader(None, gateway.service, gateway.now, gateway.nursery, gateway)
        answer = await reloader.reload()
        assert not answer.ok
        assert "only serve --config FILE can be reloaded" in answer.problems[0]


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_who_shuts_down_does_not_reload(workdir: Path, meanwhile: bool) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:

        def ends() -> None:
            gateway.ends = True

        if meanwhile:
            gateway.loading = ends
        else:
            ends()
        config = gateway.service.config
        answer = await gateway.reload(OTHER + MEMORY)
        (problem,) = answer.problems
        assert "the gateway is shutting down" in problem
        assert gateway.service.config is config
        assert not (workdir / "h.sock").exists()


async def test_one_after_the_other(workdir: Path) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        under_way = 0
        most = 0

        def count() -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            os.sched_yield()
            under_way -= 1

        gateway.loading = count
        answers: list[ControlAnswer] = []

        async def ask() -> None:
            answers.append(await gateway.reload())

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert [answer.ok for answer in answers] == [True] * 20
        assert most == 1


async def test_a_storm_of_asking_is_asked_once_more(workdir: Path) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        times = 0

        def count() -> None:
            nonlocal times
            times += 1
            if times == 1:
                for _ in range(1000):
                    trio.from_thread.run_sync(gateway.reloader.ask)

        gateway.loading = count
        gateway.nursery.start_soon(gateway.reloader.do_what_is_asked)
        gateway.reloader.ask()
        await until(lambda: len(gateway.events("configuration reloaded")) == 2)
        await trio.testing.wait_all_tasks_blocked()
        assert times == 2


async def passes(clock: trio.testing.MockClock, seconds: float) -> None:
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("seconds_between", [0, SETTLE_SECONDS * 0.9])
async def test_a_storm_of_signals_is_one_reload(
    workdir: Path, mock_clock: trio.testing.MockClock, seconds_between: float
) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        gateway.nursery.start_soon(gateway.reloader.do_what_is_asked)
        for _ in range(10):
            gateway.reloader.ask()
            await passes(mock_clock, seconds_between)
        assert not gateway.events("configuration reloaded")
        for _ in range(3):
            await passes(mock_clock, SETTLE_SECONDS)
        await until(lambda: gateway.events("configuration reloaded"))
        for _ in range(3):
            await passes(mock_clock, SETTLE_SECONDS)
        assert (await gateway.reload()).ok  # behind whatever is about to be reloaded
        assert len(gateway.events("configuration reloaded")) == 2


async def test_a_storm_without_an_end_is_not_waited_for(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        gateway.nursery.start_soon(gateway.reloader.do_what_is_asked)
        while trio.current_time() < STORM_SECONDS:
            gateway.reloader.ask()
            await passes(mock_clock, SETTLE_SECONDS / 2)
        gateway.reloader.ask()
        await until(lambda: gateway.events("configuration reloaded"))
    docs = Path(__file__).parents[2] / "docs" / "configuration.md"
    said = f"until none has come for {SETTLE_SECONDS} s, but for {STORM_SECONDS} s at most"
    assert said in " ".join(docs.read_text().split())


# --- Sessions


@pytest.mark.parametrize(
    ("exports", "refused_with", "cause"),
    [
        (EXPORTS, Rep.ERR_POLICY, Cause.DENIED_BY_RELOAD),
        (EXPORTS.replace('"x"', '"z"'), Rep.ERR_UNKNOWN, Cause.EXPORT_GONE),
    ],
)
async def test_a_rule_ends_those_whom_it_denies_and_nobody_else(
    workdir: Path, exports: str, refused_with: Rep, cause: Cause
) -> None:
    async with house(workdir, LISTEN + MEMORY + EXPORTS + EVERYBODY) as gateway:
        x, y = await gateway.session("x"), await gateway.session("y")
        denied = DENY.replace('"x"', '"[xz]"') + "disconnect = true\n"
        answer = await gateway.reload(LISTEN + MEMORY + exports + denied + EVERYBODY)
        assert answer.done[-1] == "sessions: 1 kept, 1 ended"
        assert await x.rest() == b""
        assert await y.read(0, 512) == bytes(512)
        refused = await gateway.client()
        await refused.structured()
        refused.negotiation.go("x", ())
        assert (await refused.refused()).reply == refused_with
        await until(lambda: gateway.events("session ended"))
        assert [line["end"] for line in gateway.events("session ended")] == [cause]


async def test_what_is_in_flight_is_answered_before_the_end(workdir: Path) -> None:
    began, goes_on = trio.Event(), trio.Event()

    class Slow(MemoryDisk):
        immediate = False

        async def read(self, offset: int, length: int) -> Any:
            began.set()
            await goes_on.wait()
            return await super().read(offset, length)

    async with own_upstream(workdir, Embedded({"": Slow(MIB)})) as upstream:
        rest = upstream + EXPORTS
        async with house(workdir, LISTEN + rest + EVERYBODY) as gateway:
            client = await gateway.session("x")
            cookie = await client.send(Cmd.READ, 0, 512)
            await began.wait()
            await gateway.reload(LISTEN + rest + DENY + "disconnect = true\n" + EVERYBODY)
            goes_on.set()
            assert await client.reply(cookie)
            assert await client.rest() == b""


@pytest.mark.parametrize(
    "after",
    [
        MEMORY + EXPORTS + DENY + EVERYBODY,
        MEMORY + EXPORTS.replace('"x"', '"z"') + EVERYBODY,
        MEMORY + EXPORTS + '[[rule]]\nexports = "y"\n',
        MEMORY + EXPORTS + '[[rule]]\nexports = "*"\npolicies = [{ use = "readonly" }]\n',
        MEMORY + EXPORTS.replace('"m"', '"n"') + '[upstream.n]\nuri = "memory:2M"\n',
    ],
    ids=["denied", "gone", "nobody's", "read-only", "elsewhere"],
)
async def test_a_session_keeps_what_it_was_promised(workdir: Path, after: str) -> None:
    async with house(workdir, LISTEN + MEMORY + EXPORTS + EVERYBODY) as gateway:
        client = await gateway.session("x")
        answer = await gateway.reload(LISTEN + after)
        assert answer.ok
        assert answer.done[-1] == "sessions: 1 kept, 0 ended"
        assert await client.error(Cmd.WRITE, 0, 512, data=BLOCK) == 0
        assert await client.read(0, 512) == BLOCK
        assert not gateway.events("session not held against the new rules")


async def test_a_limit_changes_at_once(workdir: Path) -> None:
    limited = EVERYBODY + 'policies = [{ use = "limit", in-flight = 3 }]\n'
    async with house(workdir, LISTEN + MEMORY + EXPORTS + EVERYBODY) as gateway:
        await gateway.session("x")
        [running] = gateway.service.running
        before = running.traffic.most_in_flight
        await gateway.reload(LISTEN + MEMORY + EXPORTS + limited)
        assert running.traffic.most_in_flight == 3
        await gateway.reload(LISTEN + MEMORY + EXPORTS + EVERYBODY)
        assert running.traffic.most_in_flight == before


async def test_rules_that_depend_on_the_time_are_looked_at_as_it_passes(
    workdir: Path, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = dt.datetime(2026, 1, 1, 12, 0, tzinfo=dt.UTC)

    rules = (
        '[[rule]]\nexports = "*"\n'
        'policies = [{ use = "schedule", hours = ["08:00-18:00"], time-zone = "UTC" }]\n'
        '[[rule]]\ndeny = true\ndisconnect = true\nexports = "x"\n'
    )
    async with house(workdir, LISTEN + MEMORY + EXPORTS + rules) as gateway:
        assert gateway.service.access.timed
        monkeypatch.setattr(clock, "here", lambda: at)
        client = await gateway.session("x")
        gateway.nursery.start_soon(gateway.reloader.look_again_as_time_passes)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(TIMED_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert await client.read(0, 512) == bytes(512)
        at = at.replace(hour=19)
        mock_clock.jump(TIMED_SECONDS)
        assert await client.rest() == b""


# --- In the middle of a negotiation


@asynccontextmanager
async def own_upstream(
    directory: Path, server: Embedded, gate: trio.Event | None = None
) -> AsyncIterator[str]:
    """A server that speaks to those who come once the gate is open; gives the text that leads to it."""
    path = directory / "up.sock"
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()

    async def serve(stream: trio.SocketStream) -> None:
        if gate is not None:
            await gate.wait()
        await server.serve(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        yield f'[upstream.m]\nuri = "nbd+unix:///?socket={path}"\n'
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("after", "reply"),
    [
        (EXPORTS + EVERYBODY, None),
        (EXPORTS + DENY + EVERYBODY, Rep.ERR_POLICY),
        (EXPORTS.replace('"x"', '"z"') + EVERYBODY, Rep.ERR_UNKNOWN),
        (EXPORTS.replace('"m"', '"n"') + EVERYBODY, None),
    ],
    ids=["the same", "denied", "gone", "elsewhere"],
)
async def test_a_reload_between_a_clients_question_and_its_answer(
    workdir: Path, after: str, reply: Rep | None
) -> None:
    """What the client opens is what the rules say when it has opened it."""
    gate = trio.Event()
    async with own_upstream(workdir, Embedded({"": MemoryDisk(MIB)}), gate) as upstream:
        text = LISTEN + upstream + '[upstream.n]\nuri = "memory:2M"\n'
        async with house(workdir, text + EXPORTS + EVERYBODY) as gateway:
            client = await gateway.client()
            await client.structured()
            client.negotiation.go("x", ())
            await client.stream.send_all(client.negotiation.data_to_send())
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await gateway.reload(text + after)).ok
            gate.set()
            event = await client.event()
            if reply is None:
                size = event.export.size  # type: ignore[union-attr] # or the test has failed
                assert size == (2 * MIB if '"n"' in after else MIB)
            else:
                assert isinstance(event, Refused)
                assert event.reply == reply


async def test_an_upstream_that_goes_while_its_exports_are_listed(workdir: Path) -> None:
    gate = trio.Event()
    server = Embedded({"": MemoryDisk(MIB)})
    async with own_upstream(workdir, server, gate) as upstream:
        text = LISTEN + upstream + EXPORTS + EVERYBODY
        async with house(workdir, text) as gateway:
            client = await gateway.client()
            await client.greeting()
            client.negotiation.list_exports()
            await client.stream.send_all(client.negotiation.data_to_send())
            await trio.testing.wait_all_tasks_blocked(0.01)
            gone = MEMORY.replace(".m]", ".n]") + EXPORT.replace('"m"', '"n"') + EVERYBODY
            assert (await gateway.reload(LISTEN + gone)).ok
            gate.set()
            await client.answered()
            assert not gateway.events("client lost to an internal error")


# --- The file


async def test_a_file_that_changes_is_taken_up_when_it_is_whole(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    watching = "[control]\nreload-on-change = true\n"

    async def looks(count: int, told: Sequence[int]) -> None:
        """After some looks, so many reloads are told of: good ones, and bad ones."""
        for _ in range(count):
            mock_clock.jump(LOOK_AT_FILE_SECONDS)
            await trio.testing.wait_all_tasks_blocked(0.01)
        await until(lambda: not gateway.reloader._turn.locked())
        names = ("configuration reloaded", "configuration stays as it was")
        assert tuple(len(gateway.events(name)) for name in names) == tuple(told)

    async with house(workdir, LISTEN + MEMORY + watching) as gateway:
        gateway.nursery.start_soon(gateway.reloader.watch_file)
        await trio.testing.wait_all_tasks_blocked()
        await looks(3, (0, 0))
        gateway.write(LISTEN + MEMORY + watching + "half = ")
        await looks(1, (0, 0))
        await looks(1, (0, 1))
        await looks(3, (0, 1))
        gateway.write(LISTEN + OTHER + MEMORY + watching)
        await looks(2, (1, 1))
        await looks(3, (1, 1))
        gateway.path.unlink()
        await looks(5, (1, 2))
        gateway.write(LISTEN + MEMORY + watching)
        await gateway.reload()  # somebody was faster
        await looks(3, (2, 2))
        gateway.write(LISTEN + MEMORY)
        await looks(3, (3, 2))
        gateway.write(LISTEN + OTHER + MEMORY)
        await looks(3, (3, 2))


SEVERAL = 'include = ["conf.d/*.toml"]\n'


async def test_files_that_it_includes_are_taken_up_as_well_all_of_them_or_none(
    workdir: Path,
) -> None:
    (workdir / "conf.d").mkdir()
    more = workdir / "conf.d" / "a.toml"
    async with house(workdir, SEVERAL + LISTEN + MEMORY + EXPORT) as gateway:
        more.write_text('[[export]]\nname = "y"\nupstream = "m"\nupstream-name = ""\n')
        assert (await gateway.reload()).ok
        await gateway.session("y")
        more.write_text('[[export]]\nname = "z"\nupstream = "nobody"\n')
        answer = await gateway.reload(SEVERAL + LISTEN + OTHER + MEMORY + EXPORT)
        assert not answer.ok
        assert answer.problems[0].startswith(f"{more}:3: export.upstream: ")
        await gateway.session("y")
        assert not (workdir / "h.sock").exists()


async def test_a_file_that_comes_or_changes_is_seen(
    workdir: Path, mock_clock: trio.testing.MockClock
) -> None:
    (workdir / "conf.d").mkdir()
    (workdir / "address").write_text("memory:1M")
    other = f'[upstream.n]\nuri = "${{file:{workdir}/address}}"\n'
    watching = "[control]\nreload-on-change = true\n"

    async def looks(told: int) -> None:
        for _ in range(2):
            mock_clock.jump(LOOK_AT_FILE_SECONDS)
            await trio.testing.wait_all_tasks_blocked(0.01)
        await until(lambda: not gateway.reloader._turn.locked())
        assert len(gateway.events("configuration reloaded")) == told

    async with house(workdir, SEVERAL + LISTEN + MEMORY + EXPORT + watching) as gateway:
        gateway.nursery.start_soon(gateway.reloader.watch_file)
        await trio.testing.wait_all_tasks_blocked()
        await looks(0)
        (workdir / "conf.d" / "a.toml").write_text(other)
        await looks(1)
        await looks(1)
        (workdir / "address").write_text("memory:2M")
        await looks(2)
        (workdir / "conf.d" / "a.toml").unlink()
        await looks(3)
        await looks(3)
