"""The verb `trace`: whoever runs a gateway looks on, and no session waits for that."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.admin.asking import ask
from gateway.admin.control import ControlSocket, Misunderstood
from gateway.admin.listening import ToldBehind, listening
from gateway.app.tracing import MOST_TRACE_SECONDS, trace_of
from gateway.hub.tapped import Tapped
from gateway.identity import Identity
from gateway.sessions import tracing
from gateway.sessions.tracing import MAX_TRACES, is_meant
from gateway.wire.constants import Cmd
from tests.app.asking import verbs
from tests.app.houses import BLOCK, EXPORT, LISTEN, MEMORY, House, house, until
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

ODD: dict[str, tuple[dict[str, Any], str]] = {
    "no export": ({}, '"export"'),
    "a list": ({"export": ["x"]}, '"export"'),
    "not UTF-8": ({"export": "\udcff"}, "UTF-8"),
    "an unknown key": ({"export": "x", "all": True}, "unknown keys all"),
    "who is a number": ({"export": "x", "who": 1}, '"who"'),
    "no time": ({"export": "x", "seconds": 0}, '"seconds"'),
    "true seconds": ({"export": "x", "seconds": True}, '"seconds"'),
    "for ever": ({"export": "x", "seconds": MOST_TRACE_SECONDS + 1}, '"seconds"'),
    "half a byte": ({"export": "x", "payloads": 0.5}, '"payloads"'),
    "too much data": ({"export": "x", "payloads": 4097}, '"payloads"'),
    "rather raw": ({"export": "x", "raw": 1}, '"raw"'),
}


@pytest.mark.parametrize("odd", ODD)
async def test_what_means_nothing(workdir: Path, odd: str) -> None:
    arguments, words = ODD[odd]
    async with house(workdir, LISTEN + MEMORY + EXPORT) as gateway:
        with pytest.raises(Misunderstood, match=words):
            await trace_of(gateway.service)(arguments)


@asynccontextmanager
async def gateway_with_socket(workdir: Path, text: str = "") -> AsyncIterator[House]:
    async with house(workdir, LISTEN + (text or MEMORY + EXPORT)) as gateway:
        control = ControlSocket(workdir / "c")
        table = {**verbs(gateway), "trace": trace_of(gateway.service)}
        run = partial(control.run, short=lambda _number: None)
        gateway.nursery.start_soon(run, table, gateway.nursery)
        try:
            yield gateway
        finally:
            await control.aclose()


def is_tapped(gateway: House) -> bool:
    """Whether any session is looked at."""
    return any(
        isinstance(each.relaying._requests_lane.source, Tapped) for each in gateway.service.running
    )


async def until_over(gateway: House) -> None:
    with trio.fail_after(HANG_SECONDS):
        await until(lambda: not gateway.service.traces._running)
    assert not is_tapped(gateway)


async def next_of(told: ToldBehind, key: str) -> dict[str, Any]:
    with trio.fail_after(HANG_SECONDS):
        async for each in told:
            if key in each:
                return each
    raise AssertionError(f"nothing more was told, and no {key}")


async def test_both_sides_of_a_session_that_was_there(workdir: Path) -> None:
    there = LISTEN.replace("g.sock", "h.sock") + MEMORY + EXPORT
    (workdir / "there").mkdir()
    through = '[upstream.u]\nuri = "nbd+unix:///x?socket=DIR/h.sock"\n[[export]]\nname = "x"\nupstream = "u"\n'
    async with (
        house(workdir / "there", there.replace("DIR", str(workdir))),
        gateway_with_socket(workdir, through) as gateway,
    ):
        client = await gateway.session("x")
        assert await client.error(Cmd.WRITE, 0, 512, data=BLOCK) == 0
        arguments = {"export": "x", "payloads": 2, "raw": True}
        async with listening(workdir / "c", "trace", arguments) as (answer, told):
            assert answer.done == ("export 'x' is traced for 10 s; sessions: 1",)
            assert "began" in await next_of(told, "began")
            assert (await next_of(told, "note"))["note"].startswith("is there: unix:pid=")
            assert is_tapped(gateway)
            assert await client.read(0, 512) == BLOCK
            seen = [await next_of(told, "text") for _ in range(4)]
        assert [(each["side"], each["sent"]) for each in seen] == [
            ("client", False),
            ("server", True),
            ("server", False),
            ("client", True),
        ]
        number = {each["session"] for each in seen}
        assert number == {next(iter(gateway.service.running)).membership.session.client.id}
        texts = [each["text"] for each in seen]
        assert texts[0].startswith("READ 0+512 cookie ")
        assert texts[1].startswith("READ 0+512 cookie 2 (the client's ")
        assert texts[2] == "OFFSET_DATA 0+512 cookie 2 DONE (READ 0+512): 0707"
        assert seen[0]["length"] == 28
        await until_over(gateway)
        assert await client.read(0, 512) == BLOCK


async def test_a_session_that_begins_and_ends_meanwhile(workdir: Path) -> None:
    async with (
        gateway_with_socket(workdir) as gateway,
        listening(workdir / "c", "trace", {"export": "x", "seconds": 60}) as (answer, told),
    ):
        assert answer.done == ("export 'x' is traced for 60 s; sessions: 0",)
        client = await gateway.session("x")
        assert (await next_of(told, "note"))["note"].startswith("begins: unix:pid=")
        assert await client.read(0, 512) == bytes(512)
        assert (await next_of(told, "text"))["text"].startswith("READ 0+512 cookie ")
        client.stream.socket.close()
        assert (await next_of(told, "note"))["note"] == "ended: in good order"


async def test_who_is_meant(workdir: Path) -> None:
    async with gateway_with_socket(workdir) as gateway:
        await gateway.session("x")
        for who, sessions in (("unix:uid=*", 1), ("10.*", 0), ("*", 1)):
            async with listening(workdir / "c", "trace", {"export": "x", "who": who}) as (
                answer,
                _,
            ):
                assert answer.done == (f"export 'x' is traced for 10 s; sessions: {sessions}",)
            await until_over(gateway)


def test_a_client_is_meant_by_whatever_it_has_proved() -> None:
    client = Identity(
        "10.0.0.5:4000", psk_user="vm-7", common_names=("disk.example",), fingerprint="ab" * 32
    )
    for pattern in ("10.0.0.5:*", "vm-*", "disk.example", "*cn:disk*"):
        assert is_meant(client, pattern)
    assert not is_meant(client, "vm")
    assert not is_meant(client, "")


REFUSED = {
    "an unknown export": ("y", "there is no export 'y'"),
    "a pattern": ("*", "a trace is of one export"),
}


@pytest.mark.parametrize("refused", REFUSED)
async def test_what_cannot_be_traced(workdir: Path, refused: str) -> None:
    export, words = REFUSED[refused]
    async with gateway_with_socket(workdir) as gateway:
        answer = await ask(workdir / "c", "trace", {"export": export})
        assert not answer.ok
        assert words in answer.problems[0]
        assert not gateway.service.traces._running


async def test_one_trace_of_an_export_and_few_at_all(workdir: Path) -> None:
    exports = "".join(EXPORT.replace('"x"', f'"x{number}"') for number in range(MAX_TRACES + 1))
    async with gateway_with_socket(workdir, MEMORY + exports), trio.open_nursery() as nursery:
        for number in range(MAX_TRACES):
            begun = trio.Event()

            async def hold(export: str, begun: trio.Event) -> None:
                async with listening(workdir / "c", "trace", {"export": export}) as (answer, _):
                    assert answer.ok
                    begun.set()
                    await trio.sleep_forever()

            nursery.start_soon(hold, f"x{number}", begun)
            await begun.wait()
        again = await ask(workdir / "c", "trace", {"export": "x0"})
        assert again.problems == (
            "'x0': it is traced already, and one trace at a time sees all of it",
        )
        more = await ask(workdir / "c", "trace", {"export": f"x{MAX_TRACES}"})
        assert more.problems == (f"'x{MAX_TRACES}': {MAX_TRACES} traces run, come again",)
        nursery.cancel_scope.cancel()


async def test_it_ends_when_its_time_is_over(workdir: Path) -> None:
    async with gateway_with_socket(workdir) as gateway:
        client = await gateway.session("x")
        arguments = {"export": "x", "seconds": 0.2}
        async with listening(workdir / "c", "trace", arguments) as (_answer, told):
            last = await next_of(told, "end")
            assert last["end"] == "0.2 s are over"
            assert [each async for each in told] == []
        await until_over(gateway)
        assert await client.read(0, 512) == bytes(512)


async def test_it_ends_when_who_asked_has_gone(workdir: Path) -> None:
    async with gateway_with_socket(workdir) as gateway:
        client = await gateway.session("x")
        stream = await trio.open_unix_socket(str(workdir / "c"))
        await stream.send_all(b'{"verb": "trace", "export": "x", "seconds": 3600}\n')
        assert await stream.receive_some()
        assert is_tapped(gateway)
        stream.socket.close()
        await until_over(gateway)
        assert await client.read(0, 512) == bytes(512)


async def test_a_reader_that_does_not_read_holds_nobody_up(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = 50_000
    begin = tracing.Traces.begin
    monkeypatch.setattr(tracing.Traces, "begin", partial_method(begin, most_bytes=small))
    async with gateway_with_socket(workdir) as gateway:
        client = await gateway.session("x")
        stream = await trio.open_unix_socket(str(workdir / "c"))
        await stream.send_all(b'{"verb": "trace", "export": "x", "seconds": 3600}\n')
        await stream.receive_some()
        [trace] = gateway.service.traces._running.values()
        with trio.fail_after(HANG_SECONDS):
            while trace._backlog.dropped < 1000:
                assert await client.read(0, 512) == bytes(512)
                assert trace._backlog._bytes <= small
        received = b""
        with trio.fail_after(HANG_SECONDS):
            while b'"dropped"' not in received:
                received += await stream.receive_some()
        [line] = [each for each in received.split(b"\n") if b'"dropped"' in each][:1]
        assert json.loads(line)["dropped"] >= 1
        stream.socket.close()
        await until_over(gateway)
        assert await client.read(0, 512) == bytes(512)


def partial_method(method: Any, **more: Any) -> Any:
    def called(self: Any, *arguments: Any, **named: Any) -> Any:
        return method(self, *arguments, **{**named, **more})

    return called


async def test_who_never_takes_the_rest_is_left(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "LAST_SECONDS", 0.1)
    async with gateway_with_socket(workdir) as gateway:
        client = await gateway.session("x")
        [relayed] = gateway.service.running
        trace = gateway.service.traces.begin("x", [relayed], gateway.service.hub.failed)
        sent: list[bytes] = []

        async def send(lines: bytes) -> None:
            sent.append(lines)
            await trio.sleep_forever()

        await client.read(0, 512)
        with trio.fail_after(HANG_SECONDS):
            await trace.tell(send, 0.1)
        assert len(sent) == 1
        await until_over(gateway)
        assert not trace._backlog


SHARED = """
[upstream.u]
uri = "nbd+unix:///x?socket=DIR/h.sock"
connections = "shared"
[[export]]
name = "x"
upstream = "u"
"""


async def test_links_that_sessions_share(workdir: Path) -> None:
    there = LISTEN.replace("g.sock", "h.sock") + MEMORY + EXPORT
    (workdir / "there").mkdir()
    async with (
        house(workdir / "there", there.replace("DIR", str(workdir))),
        gateway_with_socket(workdir, SHARED) as gateway,
    ):
        clients = [await gateway.session("x") for _ in range(2)]
        [trunk] = {each.opened.uplink.trunk for each in gateway.service.running}
        assert trunk is not None
        async with listening(workdir / "c", "trace", {"export": "x"}) as (answer, told):
            assert answer.done == ("export 'x' is traced for 10 s; sessions: 2",)
            for client in clients:
                assert await client.read(0, 512) == bytes(512)
            seen = [await next_of(told, "text") for _ in range(8)]
            assert trunk.tapped
        servers = [each for each in seen if each["side"] == "server"]
        assert {each["session"] for each in servers} == {""}
        assert [each["sent"] for each in servers] == [True, False, True, False]
        assert len({each["session"] for each in seen}) == 3
        await until_over(gateway)
        assert not trunk.tapped
        assert await clients[0].read(0, 512) == bytes(512)


async def test_another_link_is_seen_as_well(workdir: Path) -> None:
    """An export is switched to another server while it is traced."""
    there = LISTEN.replace("g.sock", "h.sock") + MEMORY + EXPORT
    (workdir / "there").mkdir()
    async with (
        house(workdir / "there", there.replace("DIR", str(workdir))),
        gateway_with_socket(workdir) as gateway,
    ):
        client = await gateway.session("x")
        uri = f"nbd+unix:///x?socket={workdir / 'h.sock'}"
        async with listening(workdir / "c", "trace", {"export": "x"}) as (_answer, told):
            assert await client.read(0, 512) == bytes(512)
            assert (await ask(workdir / "c", "switch", {"export": "x", "uri": uri})).ok
            assert await client.read(512, 512) == bytes(512)
            seen: list[Mapping[str, Any]] = []
            while not any("512+512" in each["text"] and each["sent"] for each in seen):
                seen.append(await next_of(told, "text"))
        connections = {each["connection"] for each in seen if each["side"] == "server"}
        assert len(connections) == 2
        await until_over(gateway)
        assert await client.read(0, 512) == bytes(512)
