"""Exports that are made over the control socket, and what becomes of their sessions: whole gateways."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.admin.asking import ask
from gateway.admin.control import Misunderstood
from gateway.embedded import MemoryDisk, Server
from gateway.hub.ends import Cause
from gateway.inspect.tickets import said_of, unkeepable
from gateway.status.shown import exports_shown, gateway_shown
from gateway.status.stuck import Stuck
from gateway.tickets.kept import REJOIN_SECONDS
from gateway.wire.constants import Cmd, Rep
from gateway.wire.transmission import encode_request
from tests.app.asking import Asking, asking, verbs
from tests.app.houses import BLOCK, EXPORT, LISTEN, MEMORY, House, house, until
from tests.embedded.peers import Client
from tests.tickets.clocks import NOW, Clocks, go_by
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

KEPT = '[control]\nsocket = "DIR/c"\n[tickets]\ndirectory = "DIR/t"\n'
CONFIG = LISTEN + MEMORY + KEPT
TO = {"upstream": "m", "upstream-name": ""}


async def do(gateway: House, verb: str, **arguments: object) -> Any:
    named = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
    return await verbs(gateway)[f"export-{verb}"](named)


async def made(gateway: House, name: str = "a", **more: object) -> None:
    said = {key.replace("_", "-"): value for key, value in more.items()}
    answer = await do(gateway, "add", export=name, **{**TO, **said})
    assert answer.ok, answer


async def refused(gateway: House, name: str = "a") -> tuple[int, str]:
    client = await gateway.client()
    await client.structured()
    client.negotiation.go(name, ())
    told = await client.refused()
    await client.stream.aclose()
    return told.reply, told.text


def clocks_of(gateway: House) -> Clocks:
    clocks = Clocks()
    assert gateway.service.tickets is not None
    go_by(gateway.service.tickets, clocks)
    return clocks


async def pass_by(gateway: House, clocks: Clocks, seconds: float) -> None:
    clocks.go_on(seconds)
    assert gateway.service.tickets is not None
    await gateway.service.tickets.look()


async def causes(gateway: House, count: int) -> list[str]:
    await until(lambda: len(gateway.events("session ended")) == count)
    return [line["end"] for line in gateway.events("session ended")]


ODD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a name twice": ("add", {"export": "a", "name": "a"}, '"export"'),
    "a number as a name": ("add", {"export": 5}, '"export"'),
    "both times": ("add", {"for": 5, "until": "2036-01-01T00:00Z"}, "not both"),
    "for a text": ("add", {"for": "1h"}, '"for"'),
    "for nothing": ("add", {"for": 0}, '"for"'),
    "for no number": ("add", {"for": float("nan")}, '"for"'),
    "for ever": ("add", {"for": float("inf")}, '"for"'),
    "no zone": ("add", {"until": "2036-01-01T00:00"}, "with its zone"),
    "no time": ("add", {"until": "soon"}, '"until"'),
    "a number as a time": ("add", {"until": 5}, '"until"'),
    "a time beyond all": ("add", {"until": "9999-12-31T23:59:59-23:59"}, '"until"'),
    "no new time": ("renew", {"export": "a"}, '"for"'),
    "nothing": ("remove", {}, '"export"'),
    "more than a name": ("remove", {"export": "a", "all": True}, "unknown keys all"),
    "a page": ("list", {"most": 5}, "unknown keys most"),
}


@pytest.mark.parametrize("odd", ODD)
async def test_what_means_nothing(workdir: Path, odd: str) -> None:
    verb, arguments, words = ODD[odd]
    async with house(workdir, CONFIG) as gateway:
        with pytest.raises(Misunderstood) as said:
            await verbs(gateway)[f"export-{verb}"](arguments)
        assert words in str(said.value)


async def test_where_none_are_kept(workdir: Path) -> None:
    async with house(workdir, LISTEN + MEMORY) as gateway:
        for verb in ("add", "list"):
            answer = await do(gateway, verb)
            assert not answer.ok
            assert "[tickets]" in answer.problems[0]


async def test_one_is_made_listed_used_renewed_and_removed(workdir: Path) -> None:
    async with house(workdir, CONFIG) as gateway:
        assert await refused(gateway) == (Rep.ERR_UNKNOWN, "there is no export 'a'")
        answer = await do(gateway, "add", **TO, **{"for": 3600}, once=False, read_only=True)
        name = answer.data["ticket"]["export"]
        assert len(name) == 32
        session = await gateway.session(name)
        assert await session.read(0, 512) == bytes(512)
        assert await session.error(Cmd.WRITE, data=BLOCK)
        [shown] = (await do(gateway, "list")).data["tickets"]
        assert (shown["export"], shown["sessions"], shown["upstream"]) == (name, 1, "m")
        before = shown["until"]
        assert (await do(gateway, "renew", export=name, for_=7200)).data["ticket"]["until"] > before
        listing = await gateway.client()
        await listing.greeting()
        listing.negotiation.list_exports()
        assert not (await listing.answered()).exports
        answer = await do(gateway, "remove", export=name)
        assert "; 1 session ends" in answer.done[0]
        assert await session.rest() == b""
        assert await causes(gateway, 1) == [Cause.BY_OPERATOR]
        assert (await refused(gateway, name))[0] == Rep.ERR_UNKNOWN
        assert (await do(gateway, "list")).data == {"tickets": [], "more": False}
        assert not list((workdir / "t").iterdir())


async def test_who_denied_is_hears_that_there_is_none(workdir: Path) -> None:
    listen = '[[listen]]\nuri = "nbd://127.0.0.1:0"\n'
    async with house(workdir, listen + CONFIG) as gateway:
        await made(gateway, who={"network": "10.0.0.0/8"})
        assert await refused(gateway) == (Rep.ERR_UNKNOWN, "there is no export 'a'")
        [line] = gateway.events("access denied")
        assert "the ticket is not for it" in line["why"]
        assert line["export"] == "a"
        answer = await do(
            gateway, "add", **TO, export="b", hide=False, who={"network": "10.0.0.0/8"}
        )
        assert answer.ok
        assert (await refused(gateway, "b"))[0] == Rep.ERR_POLICY


async def test_over_in_the_middle_of_a_write_it_is_done_and_answered(workdir: Path) -> None:
    async with house(workdir, CONFIG) as gateway:
        clocks = clocks_of(gateway)
        await made(gateway, until="2030-03-17T18:46:40Z")
        await made(gateway, "b")
        session = await gateway.session("a")
        await session.stream.send_all(encode_request(Cmd.WRITE, 0, 7, 0, 512) + BLOCK[:100])
        await until(lambda: next(iter(gateway.service.running)).traffic.in_flight)
        await pass_by(gateway, clocks, 3600)
        assert gateway.events("ticket is over")
        assert (await refused(gateway))[0] == Rep.ERR_UNKNOWN
        await session.stream.send_all(BLOCK[100:])
        chunks = await session.reply(7)
        assert not chunks[-1].error if chunks[-1].kind & 0x8000 else True
        assert await session.rest() == b""
        assert await causes(gateway, 1) == [Cause.EXPIRED]
        other = await gateway.session("b")
        assert await other.read(0, 512) == BLOCK
    assert NOW  # the time above is an hour after it


async def test_who_has_asked_when_it_ends_does_not_get_it(workdir: Path) -> None:
    """Between the client's GO and its session is time for another to end the ticket."""
    async with house(workdir, CONFIG) as gateway:
        service = gateway.service
        await made(gateway)
        ends = trio.Event()
        relay = service.hub.relay

        async def late(*arguments: Any, **named: Any) -> Any:
            await do(gateway, "remove", export="a")
            if ends.is_set():
                await made(gateway)  # another one of the same name is not the same
            return await relay(*arguments, **named)

        service.hub.relay = late  # type: ignore[method-assign]
        for count in (1, 2):
            client = await gateway.client()
            await client.go("a")
            assert await client.rest() == b""
            assert (await causes(gateway, count))[-1] == Cause.EXPIRED
            ends.set()
            if count == 1:
                await made(gateway)


async def test_one_that_ends_while_its_server_is_asked_is_not_opened(workdir: Path) -> None:
    asked, removed = trio.Event(), trio.Event()
    server = Server({"disk": MemoryDisk(4096)})

    async def late(stream: trio.SocketStream) -> None:
        asked.set()
        await removed.wait()
        await server.serve(stream)

    slow = '[upstream.slow]\nuri = "nbd+unix:///?socket=DIR/slow"\n'
    async with trio.open_nursery() as nursery:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(workdir / "slow"))
        sock.listen()
        nursery.start_soon(trio.serve_listeners, late, [trio.SocketListener(sock)])
        async with house(workdir, CONFIG + slow) as gateway:
            await made(gateway, upstream="slow", upstream_name="disk")
            client = await gateway.client()
            await client.structured()

            async def end() -> None:
                await asked.wait()
                await do(gateway, "remove", export="a")
                removed.set()

            nursery.start_soon(end)
            client.negotiation.go("a", ())
            assert (await client.refused()).reply == Rep.ERR_UNKNOWN
            assert not gateway.service.running
        nursery.cancel_scope.cancel()


async def test_for_one_use(workdir: Path) -> None:
    async with house(workdir, CONFIG) as gateway:
        clocks = clocks_of(gateway)
        await made(gateway, once=True)
        [file] = (workdir / "t").iterdir()
        assert json.loads(file.read_text())["user"] is None
        first, second = await gateway.session("a"), await gateway.session("a")
        assert json.loads(file.read_text())["user"][0] == "unix"
        for client in (first, second):
            await client.stream.aclose()
        assert await causes(gateway, 2) == [Cause.CLIENT_EOF] * 2
        await pass_by(gateway, clocks, REJOIN_SECONDS - 1)
        third = await gateway.session("a")
        await pass_by(gateway, clocks, 3600)
        assert await third.read(0, 512) == bytes(512)
        await third.stream.aclose()
        await causes(gateway, 3)
        await pass_by(gateway, clocks, REJOIN_SECONDS)
        assert (await refused(gateway))[0] == Rep.ERR_UNKNOWN
        await until(lambda: not list((workdir / "t").iterdir()))


async def test_a_use_that_cannot_be_written_down_is_refused_and_leaves_it_as_it_was(
    workdir: Path,
) -> None:
    async with house(workdir, CONFIG) as gateway:
        await made(gateway, once=True)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            reply, text = await refused(gateway)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert reply == Rep.ERR_POLICY
        assert "cannot be noted" in text
        assert str(workdir) not in text
        [line] = gateway.events("ticket cannot be used")
        assert "File too large" in line["why"]
        session = await gateway.session("a")
        assert await session.read(0, 512) == bytes(512)


async def test_a_server_that_is_down_uses_nothing_up(workdir: Path) -> None:
    down = '[upstream.down]\nuri = "nbd+unix:///?socket=DIR/nobody"\nconnect-seconds = 1\n'
    async with house(workdir, CONFIG + down) as gateway:
        await made(gateway, once=True, upstream="down")
        await refused(gateway)
        assert gateway.service.tickets is not None
        kept = gateway.service.tickets.get("a")
        assert kept is not None
        assert (kept.user, kept.begun, kept.sessions) == (None, False, 0)


# --- Reload


async def test_a_reload_keeps_them_and_their_sessions(workdir: Path) -> None:
    async with house(workdir, CONFIG) as gateway:
        await made(gateway, policies=[{"use": "limit", "connections": 1}])
        session = await gateway.session("a")
        answer = await gateway.reload(CONFIG + EXPORT)
        assert answer.ok, answer
        assert await session.read(0, 512) == bytes(512)
        assert (await refused(gateway))[0] == Rep.ERR_UNKNOWN  # it has counted on
        await session.stream.aclose()
        await causes(gateway, 1)
        await gateway.session("a")
        await gateway.session("x")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CONFIG.replace("upstream.m", "upstream.n"), "there is no [upstream.m]"),
        (CONFIG + EXPORT.replace('"x"', '"a"'), '[[export]] has the name "a"'),
        (CONFIG.replace("DIR/t", "DIR/u"), "1 ticket is in"),
        (LISTEN + MEMORY, "1 ticket is in"),
    ],
)
async def test_a_reload_that_has_no_place_for_one_changes_nothing(
    workdir: Path, text: str, why: str
) -> None:
    async with house(workdir, CONFIG) as gateway:
        await made(gateway)
        session = await gateway.session("a")
        answer = await gateway.reload(text)
        assert not answer.ok
        assert why in answer.problems[0]
        assert await session.read(0, 512) == bytes(512)
        await gateway.session("a")
        await do(gateway, "remove", export="a")
        assert (await gateway.reload(text)).ok


async def test_a_reload_takes_up_a_directory_that_is_new(workdir: Path) -> None:
    async with house(workdir, LISTEN + MEMORY + EXPORT) as gateway:
        assert (await gateway.reload(CONFIG)).ok
        await made(gateway)
        assert (await refused(gateway, "x"))[0] == Rep.ERR_UNKNOWN
        clocks = clocks_of(gateway)
        await made(gateway, "b", until="2030-03-17T18:46:40Z")
        clocks.go_on(3600)
        assert gateway.service.tickets is not None
        gateway.service.tickets._news.set()
        await until(lambda: gateway.events("ticket is over"))


async def test_a_rule_that_comes_ends_sessions_of_tickets_only_if_it_says_so(workdir: Path) -> None:
    deny = "[[rule]]\ntickets = true\ndeny = true\n"
    async with house(workdir, CONFIG) as gateway:
        await made(gateway)
        session = await gateway.session("a")
        assert (await gateway.reload(CONFIG + deny)).ok
        assert await session.read(0, 512) == bytes(512)
        assert (await do(gateway, "add", **TO, export="b")).problems == (
            "nobody can have it now: rule 1 denies it to everybody",
        )
        assert (await gateway.reload(CONFIG + deny + "disconnect = true\n")).ok
        assert await session.rest() == b""
        assert await causes(gateway, 1) == [Cause.DENIED_BY_RELOAD]


# --- The others know them


async def test_pauses_and_what_is_shown_know_them(workdir: Path) -> None:
    async with house(workdir, CONFIG) as gateway:
        await made(gateway)
        paused = await verbs(gateway)["pause"]({"upstream": "m"})
        assert paused.ok, paused
        assert set(gateway.service.paused) == {"a"}
        assert (await verbs(gateway)["resume"]({"export": "a"})).ok
        session = await gateway.session("a")
        await session.read(0, 512)
        [shown, *_others], _more = await exports_shown(gateway.service, None)  # they have its times
        assert (shown["export"], shown["ticket"], shown["upstream"]) == ("a", True, "m")
        await session.stream.aclose()
        await causes(gateway, 1)
        [shown], _more = await exports_shown(gateway.service, None)
        assert (shown["export"], shown["totals"]["sessions"]) == ("other", 1)
        stuck = Stuck(gateway.service, gateway.service.log)
        status = await gateway_shown(gateway.service, stuck, began=0, listeners=[], terms=[])
        assert status["tickets"] == 1


async def test_what_check_says_of_them(workdir: Path) -> None:
    async with house(workdir, CONFIG) as gateway:
        await made(gateway)
        (workdir / "t" / "notes").write_text("x")
        config = gateway.service.config
        first, second = said_of(config)
        assert first.startswith("1 export was made at run time")
        assert second.startswith("warning: notes is no ticket")
        assert unkeepable(config) is None
        away = config.tickets.model_copy(update={"directory": workdir / "no" / "t"})
        gone = config.model_copy(update={"tickets": away})
        assert unkeepable(gone) == f"there is no directory {workdir}/no"


# --- Whoever asks, and goes


async def test_who_goes_before_the_answer_has_made_none(workdir: Path) -> None:
    async with asking(workdir, MEMORY + KEPT.replace("DIR/c", "DIR/other")) as here:
        line = json.dumps({"verb": "export-add", "export": "a", **TO}).encode() + b"\n"
        for _ in range(20):
            stream = await trio.open_unix_socket(str(here.path))
            await stream.send_all(line)
            await stream.aclose()
        with trio.fail_after(HANG_SECONDS):
            while len(here.heard) < 20:
                await trio.sleep(0.01)
        tickets = here.gateway.service.tickets
        assert tickets is not None
        await until(lambda: not len(tickets) and not list((workdir / "t").iterdir()))


async def race(here: Asking) -> None:
    """Make, open and end one name, all at the same time, for many times."""
    done = 0

    async def operate(verb: str) -> None:
        nonlocal done
        for _ in range(25):
            await ask(here.path, verb, {"export": "a", **(TO if verb == "export-add" else {})})
            done += 1

    async def come() -> None:
        while done < 50:
            client: Client = await here.gateway.client()
            try:
                await client.structured()
                client.negotiation.go("a", ())
                event = await client.event()
                if type(event).__name__ == "Answered":
                    await client.ask(Cmd.READ, 0, 512)
            except (EOFError, trio.BrokenResourceError):
                pass
            await client.stream.aclose()

    async with trio.open_nursery() as nursery:
        for verb in ("export-add", "export-remove"):
            nursery.start_soon(operate, verb)
        for _ in range(4):
            nursery.start_soon(come)


async def test_made_opened_and_ended_at_the_same_time(workdir: Path) -> None:
    async with asking(workdir, MEMORY + KEPT.replace("DIR/c", "DIR/other")) as here:
        await race(here)
        service, tickets = here.gateway.service, here.gateway.service.tickets
        assert tickets is not None
        await until(lambda: not service.running and not service.opening)
        kept = tickets.get("a")
        assert kept is None or kept.sessions == 0
        assert len(list((workdir / "t").iterdir())) == len(tickets)
        await ask(here.path, "export-remove", {"export": "a"})
        assert not list((workdir / "t").iterdir())
        assert not here.gateway.events("client lost to an internal error")
