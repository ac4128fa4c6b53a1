"""The verbs of the control socket that hold and switch exports: what they take, and whom they lead where."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.admin.asking import asking as control_asking
from gateway.admin.control import Misunderstood
from gateway.sessions.upkeep import see_to_upstreams
from gateway.wire.constants import Cmd, Errno
from gateway.wire.transmission import encode_request
from tests.app.asking import NAMES, SERVER, THROUGH, Asking, asking, verbs
from tests.app.houses import BLOCK, EXPORT, LISTEN, MEMORY, house, until

pytestmark = pytest.mark.real

ODD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no export": ("pause", {}, '"export"'),
    "an export that is none": ("pause", {"export": 1}, '"export"'),
    "a name that is not UTF-8": ("pause", {"export": "a\udcff"}, "UTF-8"),
    "a pattern that is not UTF-8": ("pause", {"export": "\ud800*", "all": True}, "UTF-8"),
    "a name with NUL": ("switch", {"export": "a\0"}, "NUL"),
    "a name that is too long": ("resume", {"export": "a" * 4097}, "4096 bytes"),
    "losses of what is not UTF-8": ("losses", {"export": "\udcff"}, "UTF-8"),
    "a URI that is not UTF-8": ("switch", {"export": "", "uri": "nbd://\ud800"}, "\\ud800"),
    "an unknown key": ("resume", {"export": "x", "for": 3}, "unknown keys for"),
    "no number": ("pause", {"export": "x", "for": "1"}, '"for"'),
    "a truth": ("pause", {"export": "x", "within": True}, '"within"'),
    "not at all": ("pause", {"export": "x", "within": 0}, '"within"'),
    "not a number": ("pause", {"export": "x", "within": float("nan")}, '"within"'),
    "a day": ("pause", {"export": "x", "for": 86400}, "up to 3600"),
    "too patient": ("switch", {"export": "x", "within": 61}, "up to 60"),
    "a URI that is none": ("switch", {"export": "x", "uri": "memory:1M"}, "expected an NBD URI"),
    "a list of URIs": ("switch", {"export": "x", "uri": []}, '"uri"'),
    "a name and an upstream": ("pause", {"export": "x", "upstream": "m"}, '"upstream"'),
    "an upstream that is none": ("resume", {"upstream": 1}, '"upstream"'),
    "all, perhaps": ("pause", {"export": "x", "all": "yes"}, '"all" is true or false'),
    "a loss, perhaps": ("switch", {"export": "x", "accept-loss": 1}, '"accept-loss" is true'),
    "losses of a list": ("losses", {"export": ["x"]}, '"export"'),
    "losses of all": ("losses", {"all": True}, "unknown keys all"),
    "perhaps": ("switch", {"export": "x", "close-first": 1}, '"close-first"'),
}


@pytest.mark.parametrize("odd", ODD)
async def test_what_means_nothing(workdir: Path, odd: str) -> None:
    verb, arguments, words = ODD[odd]
    async with house(workdir, LISTEN + MEMORY + EXPORT) as gateway:
        with pytest.raises(Misunderstood) as said:
            await verbs(gateway)[verb](arguments)
        assert words in str(said.value)
        assert not gateway.service.paused


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown export": ("pause", {"export": "z"}, "there is no export"),
    "an unknown export to switch": ("switch", {"export": "z"}, "there is no export"),
    "an unknown export to a URI": (
        "switch",
        {"export": "z", "uri": "nbd://127.0.0.1:1"},
        "there is no export",
    ),
    "what is not paused": ("resume", {"export": "x"}, "is not paused"),
    "nobody": ("switch", {"export": "x", "uri": "nbd://127.0.0.1:1"}, "unreachable"),
    "TLS where there was none": (
        "switch",
        {"export": "x", "uri": "nbds://127.0.0.1:1"},
        "is spoken to by nbd:",
    ),
}


@pytest.mark.parametrize("refused", REFUSED)
async def test_what_is_not_done(workdir: Path, refused: str) -> None:
    verb, arguments, words = REFUSED[refused]
    async with house(workdir, LISTEN + MEMORY + EXPORT) as gateway:
        client = await gateway.session("x")
        answer = await verbs(gateway)[verb](arguments)
        assert not answer.ok
        assert words in answer.problems[0]
        assert not gateway.service.paused
        assert await client.read(0, 512) == bytes(512)


async def test_a_server_in_the_clear_is_no_way_out_of_tls(workdir: Path) -> None:
    import trustme

    ca = trustme.CA()
    (workdir / "ca").mkdir()
    ca.cert_pem.write_to_path(str(workdir / "ca" / "ca-cert.pem"))
    secure = '[upstream.m]\nuri = "nbds://127.0.0.1:1"\ncertificates = "DIR/ca"\n'
    async with house(workdir, LISTEN + secure + EXPORT) as gateway:
        arguments = {"export": "x", "uri": "nbd://127.0.0.1:1"}
        answer = await verbs(gateway)["switch"](arguments)
        assert "is spoken to by nbds:" in answer.problems[0]
        answer = await verbs(gateway)["switch"]({**arguments, "uri": "nbds://127.0.0.1:1"})
        assert "is unreachable" in answer.problems[0]  # which is all that is wrong with it


async def test_a_switch_outlives_a_reload_and_the_way_back(workdir: Path) -> None:
    """Another gateway is the other server."""
    there = '[[listen]]\nuri = "nbd+unix:///?socket=DIR/h.sock"\n[upstream.n]\nuri = "memory:1M"\n'
    (workdir / "there").mkdir()
    async with (
        house(workdir / "there", there.replace("DIR", str(workdir))),
        house(workdir, LISTEN + MEMORY + EXPORT) as gateway,
    ):
        do = verbs(gateway)
        client = await gateway.session("x")
        assert await client.error(Cmd.WRITE, 0, 512, data=BLOCK) == 0
        uri = f"nbd+unix:///?socket={workdir / 'h.sock'}"
        assert (await do["switch"]({"export": "x", "uri": uri})).ok
        assert await client.read(0, 512) == bytes(512)
        assert (await do["pause"]({"export": "x"})).ok
        assert (await gateway.reload(LISTEN + MEMORY + "connect-seconds = 3\n" + EXPORT)).ok
        [said] = gateway.events(
            "export stays where it was switched to, whatever the configuration says"
        )
        assert said["export"] == "x"
        assert list(gateway.service.paused) == ["x"]
        assert (await do["resume"]({"export": "x"})).ok
        assert await client.read(0, 512) == bytes(512)
        assert await (await gateway.session("x")).read(0, 512) == bytes(512)
        assert (await do["switch"]({"export": "x"})).ok
        assert await client.read(0, 512) == BLOCK
        assert await (await gateway.session("x")).read(0, 512) == BLOCK
        assert (await do["switch"]({"export": "x", "uri": uri})).ok
        assert (await gateway.reload(LISTEN + MEMORY + EXPORT.replace('"x"', '"y"'))).ok
        assert not gateway.service.switched


async def test_a_rule_ends_a_session_that_is_paused(workdir: Path) -> None:
    denied = '[[rule]]\nexports = "x"\ndeny = true\ndisconnect = true\n'
    async with house(workdir, LISTEN + MEMORY + EXPORT) as gateway:
        await gateway.session("x")
        do = verbs(gateway)
        await do["pause"]({"export": "x"})
        assert (await gateway.reload(LISTEN + MEMORY + EXPORT + denied)).ok
        await until(lambda: not gateway.service.running)
        assert (await do["resume"]({"export": "x"})).done == ("'x': 0 sessions go on",)


async def test_who_waits_is_held_against_the_rules_that_hold_then(workdir: Path) -> None:
    denied = '[[rule]]\nexports = "x"\ndeny = true\n'
    async with house(workdir, LISTEN + MEMORY + EXPORT) as gateway:
        do = verbs(gateway)
        await do["pause"]({"export": "x"})
        client = await gateway.client()
        await client.structured()
        client.negotiation.go("x", ())
        async with trio.open_nursery() as nursery:

            async def come() -> None:
                assert "is denied" in str(await client.refused())

            nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await gateway.reload(LISTEN + MEMORY + EXPORT + denied)).ok
            assert (await do["resume"]({"export": "x"})).ok


async def test_a_switched_export_is_seen_to_as_its_upstream_says(workdir: Path) -> None:
    """Connections are kept ready there, no more of them than may be; and a reload of these settings reaches
    it.
    """
    there = '[[listen]]\nuri = "nbd+unix:///?socket=DIR/h.sock"\n[upstream.n]\nuri = "memory:1M"\n'
    uri = f"nbd+unix:///?socket={workdir / 'h.sock'}"
    elsewhere = f'[upstream.m]\nuri = "nbd+unix:///?socket={workdir / "nobody"}"\n'
    (workdir / "there").mkdir()
    async with (
        house(workdir / "there", there.replace("DIR", str(workdir))) as other,
        house(workdir, LISTEN + elsewhere + "max-connections = 2\nwarm = 1\n" + EXPORT) as gateway,
    ):
        gateway.nursery.start_soon(see_to_upstreams, gateway.service)
        answer = await verbs(gateway)["switch"]({"export": "x", "uri": uri})
        assert answer.ok
        await gateway.session("x")
        await until(lambda: len(other.service.negotiations) == 1)  # the one that is kept ready
        await gateway.session("x")
        await until(lambda: not other.service.negotiations)
        less = "max-connections = 2\nconnect-seconds = 0.01\n"
        assert (await gateway.reload(LISTEN + elsewhere + less + EXPORT)).ok
        [server] = gateway.service.elsewhere
        assert (server.settings.warm, server.settings.connect_seconds) == (0, 0.01)
        third = await gateway.client()
        await third.structured()
        third.negotiation.go("x", ())
        assert "max-connections = 2 lets" in str(await third.refused())


# --- Which exports are meant

PATTERNS = THROUGH + '[[export]]\nname = "vm-*"\nupstream = "u"\n'
SPELLED = THROUGH + "".join(
    f'[[export]]\nname = "{name}"\nupstream = "u"\n' for name in ("vm-1", "vm-9", "vm[*]")
)
AND_ANOTHER = MEMORY + PATTERNS + EXPORT
LISTED = THROUGH + "".join(
    f'[[export]]\nname = "{name}"\nupstream = "u"\n' for name in ("vm-1", "vm-2")
)
DENIED = LISTED + '[[rule]]\nexports = "vm-1"\n'


UNKNOWN: dict[str, tuple[str, str, str]] = {
    "a slip in a pattern's name": (PATTERNS, "vm-l", "u has no export 'vm-l'"),
    "a slip where all pass through": (THROUGH, "vm-l", "u has no export 'vm-l'"),
    "spelled out, and not at the server": (SPELLED, "vm-9", "u has no export 'vm-9'"),
    "not led anywhere": (PATTERNS, "disk", "there is no export 'disk'"),
    "of no rule": (DENIED, "vm-2", "nobody can have export 'vm-2': no rule lets anybody through"),
    "a pattern": (PATTERNS, "vm-*", "'vm-*' is a pattern, for 'vm-1', 'vm-2': name one of them"),
    "any": (THROUGH, "*", "'*' is a pattern, for 'disk', 'vm-1', 'vm-2'"),
    "a pattern, of no rule": (DENIED, "vm-*", "is a pattern, for 'vm-1': name one"),
    "a pattern of nothing": (PATTERNS, "x-?", "is a pattern, and matches no export"),
}


@pytest.mark.parametrize("verb", ["pause", "switch"])
@pytest.mark.parametrize("unknown", UNKNOWN)
async def test_a_name_that_no_client_can_have(workdir: Path, verb: str, unknown: str) -> None:
    config, name, words = UNKNOWN[unknown]
    async with asking(workdir, config) as made:
        answer = await made.ask(verb, export=name)
        assert not answer.ok
        if verb == "pause" or not words.startswith("u has"):
            assert words in answer.problems[0]
        assert not made.paused
        assert not made.gateway.service.switches[name]
        assert (await made.ask("pause", export="vm-1")).ok


@pytest.mark.parametrize("config", [PATTERNS, THROUGH, SPELLED, DENIED])
async def test_a_name_that_a_client_can_have(workdir: Path, config: str) -> None:
    async with asking(workdir, config) as made:
        for verb in ("pause", "resume", "switch", "losses"):
            answer = await made.ask(verb, export="vm-1")
            assert answer.ok, answer


async def test_a_server_that_does_not_answer(workdir: Path) -> None:
    """What the configuration spells out is held; of another name nobody knows whether it is one."""
    gone = SPELLED.replace("h.sock", "gone.sock") + '[[export]]\nname = "x*"\nupstream = "u"\n'
    async with asking(workdir, gone) as made:
        assert (await made.ask("pause", export="vm-1", within=1)).ok
        assert (await made.ask("pause", export="vm*", within=1)).ok  # as [[export]] has it: "vm[*]"
        assert (await made.ask("pause", export="vm[*]", within=1)).ok
        answer = await made.ask("pause", export="x1", within=1)
        assert "whether there is an export 'x1' is not known: cannot connect" in answer.problems[0]
        assert made.paused == {"vm-1", "vm*"}


async def test_a_name_that_somebody_has_is_one_whatever_the_rules_say_since(workdir: Path) -> None:
    async with asking(workdir, LISTED) as made:
        await made.gateway.session("vm-2")
        assert (await made.gateway.reload(LISTEN + DENIED)).ok
        assert (await made.ask("pause", export="vm-2")).ok


async def test_all_that_a_pattern_matches(workdir: Path) -> None:
    async with asking(workdir, AND_ANOTHER) as made:
        client = await made.gateway.session("vm-2")
        answer = await made.ask("pause", export="vm-*", all=True)
        assert answer.done == (
            "'vm-1': 0 sessions held, 0 flushed, for 300 s",
            "'vm-2': 1 session held, 1 flushed, for 300 s",
        )
        assert made.paused == {"vm-1", "vm-2"}
        answer = await made.ask("resume", export="*")
        assert "is a pattern, for 'vm-1', 'vm-2'" in answer.problems[0]
        answer = await made.ask("resume", export="*", all=True)
        assert len(answer.done) == 2
        assert not made.paused
        assert await client.read(0, 512) == bytes(512)
        answer = await made.ask("resume", export="*", all=True)
        assert "matches no export that is paused" in answer.problems[0]


async def test_all_or_none_are_held(workdir: Path) -> None:
    async with asking(workdir, AND_ANOTHER) as made:
        client = await made.gateway.session("vm-2")
        await client.stream.send_all(encode_request(Cmd.WRITE, 0, 1, 0, 512) + BLOCK[:9])
        await trio.testing.wait_all_tasks_blocked(0.01)
        answer = await made.ask("pause", export="vm-*", all=True, within=0.2)
        assert "'vm-1', 'vm-2' go on: within 0.2 s did not come to an end" in answer.problems[0]
        assert not made.paused


async def test_all_of_a_server(workdir: Path) -> None:
    there = f"nbd+unix:///?socket={workdir / 'h.sock'}"
    config = AND_ANOTHER.replace("h.sock", "other.sock")
    other = (SERVER + NAMES).replace("DIR", str(workdir)).replace("h.sock", "other.sock")
    (workdir / "other").mkdir()
    async with house(workdir / "other", other), asking(workdir, config) as made:
        one, two = await made.gateway.session("vm-1"), await made.gateway.session("vm-2")
        stays = await made.gateway.session("x")
        answer = await made.ask("pause", upstream="u")
        assert len(answer.done) == 2
        assert made.paused == {"vm-1", "vm-2"}
        assert await stays.read(0, 512) == bytes(512)
        assert (await made.ask("resume", upstream="u")).ok
        assert await one.error(Cmd.WRITE, 0, 512, data=BLOCK) == 0
        answer = await made.ask("switch", upstream="u", uri=there)
        assert [each.split(": ")[0] for each in answer.done] == ["'vm-1'", "'vm-2'"]
        assert all("1 session went over" in each for each in answer.done)
        assert await one.read(0, 512) == await two.read(0, 512) == bytes(512)
        answer = await made.ask("pause", upstream="u")
        assert "upstream 'u' has no export that there is now" in answer.problems[0]
        assert (await made.ask("switch", upstream="u")).ok  # the way back
        assert await one.read(0, 512) == BLOCK
        assert not made.gateway.service.switched
        answer = await made.ask("pause", upstream="z")
        assert answer.problems == ("there is no upstream 'z', only m, u",)
        answer = await made.ask("switch", upstream="u", uri=f"{there}".replace("/?", "/vm-1?"))
        assert "is one export, and 2 are to go there" in answer.problems[0]
        answer = await made.ask("switch", export="*", all=True, uri=there)
        assert "they have several upstreams" in answer.problems[0]


# --- Who asks, and goes


async def test_who_has_asked_is_told_to_the_log(workdir: Path) -> None:
    async with asking(workdir, PATTERNS) as made:
        await made.ask("pause", export="vm-1")
        await made.ask("pause", export="vm-l")
        one, other = made.heard
        assert one.by == other.by
        assert one.by.pid == os.getpid()
        assert one.answer is not None
        assert one.answer.ok
        assert other.answer is not None
        assert "has no export" in other.answer.problems[0]


async def hangs(workdir: Path, made: Asking) -> trio.SocketStream:
    """A client that keeps its export from being quiet, by half a request."""
    client = await made.gateway.session("vm-1")
    await client.stream.send_all(encode_request(Cmd.WRITE, 0, 1, 0, 512) + BLOCK[:9])
    await trio.testing.wait_all_tasks_blocked(0.01)
    return client.stream


@pytest.mark.parametrize("verb", ["pause", "switch"])
async def test_who_goes_before_it_is_done_has_nothing_done(workdir: Path, verb: str) -> None:
    async with asking(workdir, PATTERNS) as made:
        stream = await hangs(workdir, made)
        asks = await trio.open_unix_socket(str(made.path))
        await asks.send_all(json.dumps({"verb": verb, "export": "vm-1"}).encode() + b"\n")
        await until(lambda: made.paused)
        await asks.aclose()
        await until(lambda: not made.paused)
        await stream.send_all(BLOCK[9:])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not made.paused
        [session] = made.gateway.service.hub.sessions
        assert not session.held
        await until(lambda: made.heard)
        assert made.heard[0].answer is None
        assert not made.gateway.service.switches["vm-1"]
        assert (await made.ask("pause", export="vm-1")).ok


async def test_who_goes_after_it_was_done_unread_has_it_undone(workdir: Path) -> None:
    async with asking(workdir, PATTERNS) as made:
        client = await made.gateway.session("vm-1")
        asks = await trio.open_unix_socket(str(made.path))
        await asks.send_all(b'{"verb": "pause", "export": "vm-1"}\n')
        await until(lambda: made.heard)
        assert made.paused == {"vm-1"}
        await asks.aclose()
        await until(lambda: not made.paused)
        assert await client.read(0, 512) == bytes(512)
        [said] = made.gateway.events("export resumed: who had it paused has gone")
        assert said["export"] == "vm-1"


async def test_a_pause_that_others_have_asked_for_since_stays(workdir: Path) -> None:
    async with asking(workdir, PATTERNS) as made:
        async with control_asking(
            made.path, "pause", {"export": "vm-1", "while-connected": True}
        ) as answer:
            assert answer.ok
            assert (await made.ask("pause", export="vm-1")).ok
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert made.paused == {"vm-1"}
        answer = await made.ask("pause", export="vm-1", while_connected=True)
        assert answer.problems == ("'vm-1' is paused already, and stays so",)
        assert made.paused == {"vm-1"}


async def test_who_resumes_what_he_has_paused_takes_back_that_alone(workdir: Path) -> None:
    me = {"export": "vm-1", "holder": "me"}
    async with asking(workdir, PATTERNS) as made:
        assert (await made.ask("pause", **me)).ok
        assert (await made.ask("resume", export="vm-1")).ok
        assert (await made.ask("pause", export="vm-1")).ok
        answer = await made.ask("resume", **me)
        assert answer.problems == ("'vm-1' has gone on meanwhile, and was paused by others since",)
        assert made.paused == {"vm-1"}
        assert (await made.ask("pause", **me)).ok
        answer = await made.ask("resume", **me)
        assert answer.done == ("'vm-1' stays paused: others have asked for that as well",)
        assert made.paused == {"vm-1"}
        assert (await made.ask("resume", export="vm-1")).ok
        assert (await made.ask("pause", **me)).ok
        assert (await made.ask("resume", **me)).ok
        assert not made.paused
        for _ in range(2):  # once more is only longer
            assert (await made.ask("pause", **me)).ok
        assert (await made.ask("resume", **me)).ok
        assert not made.paused
        wrong = await made.ask("resume", export="vm-1", holder=7)
        assert not wrong.ok


async def test_who_has_paused_several_hears_that_one_of_them_has_gone_on(workdir: Path) -> None:
    all_ = {"export": "vm-*", "all": True, "holder": "me"}
    async with asking(workdir, PATTERNS) as made:
        assert (await made.ask("pause", **all_)).ok
        assert made.paused == {"vm-1", "vm-2"}
        assert (await made.ask("resume", export="vm-2")).ok
        answer = await made.ask("resume", **all_)
        assert answer.problems == ("'vm-2' is not paused",)
        assert made.paused == {"vm-1"}
        assert (await made.ask("resume", export="vm-1", holder="me")).ok
        assert (await made.ask("pause", export="vm-1")).ok
        assert (await made.ask("pause", export="vm-2", holder="me")).ok
        assert (await made.ask("resume", **all_)).ok  # those of others are no concern of it
        assert made.paused == {"vm-1"}
        assert not (await made.ask("resume", **all_)).ok


async def test_who_resumes_a_part_still_holds_the_rest(workdir: Path) -> None:
    all_ = {"export": "vm-*", "all": True, "holder": "me"}
    async with asking(workdir, PATTERNS) as made:
        assert (await made.ask("pause", **all_)).ok
        assert (await made.ask("resume", export="vm-1", holder="me")).ok
        assert made.paused == {"vm-2"}
        assert (await made.ask("pause", export="vm-1")).ok
        assert (await made.ask("resume", **all_)).ok
        assert made.paused == {"vm-1"}
        assert not (await made.ask("resume", **all_)).ok


async def test_a_command_that_is_undone_leaves_what_its_holder_had_paused_before(
    workdir: Path,
) -> None:
    async with asking(workdir, PATTERNS) as made:
        assert (await made.ask("pause", export="vm-1", holder="me")).ok
        asks = await trio.open_unix_socket(str(made.path))
        await asks.send_all(b'{"verb": "pause", "export": "vm-*", "all": true, "holder": "me"}\n')
        await until(lambda: made.paused == {"vm-1", "vm-2"})
        await until(lambda: len(made.heard) == 2)
        await asks.aclose()
        await until(lambda: "vm-2" not in made.paused)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert made.paused == {"vm-1"}
        # And what was undone is not missed when he comes back for the rest.
        assert (await made.ask("resume", export="vm-*", all=True, holder="me")).ok
        assert not made.paused


async def test_who_asks_for_less_shortens_nobodys_pause(
    workdir: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with asking(workdir, PATTERNS) as made:
        assert (await made.ask("pause", export="vm-1", **{"for": 1000})).ok
        answer = await made.ask("pause", export="vm-1", **{"for": 1})
        assert answer.done == ("'vm-1' was paused already, and is for 1000 s from now on",)


async def test_a_pause_that_lasts_as_long_as_its_caller(workdir: Path) -> None:
    async with asking(workdir, PATTERNS) as made:
        client = await made.gateway.session("vm-1")
        async with control_asking(
            made.path, "pause", {"export": "vm-*", "all": True, "while-connected": True}
        ) as answer:
            assert answer.ok
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert made.paused == {"vm-1", "vm-2"}
        await until(lambda: not made.paused)
        assert await client.read(0, 512) == bytes(512)


async def test_who_goes_takes_back_no_pause_of_others(workdir: Path) -> None:
    """It had asked for a pause that was there, and went without having read that it lasts longer now."""
    async with asking(workdir, PATTERNS) as made:
        assert (await made.ask("pause", export="vm-1")).ok
        asks = await trio.open_unix_socket(str(made.path))
        await asks.send_all(b'{"verb": "pause", "export": "vm-1"}\n')
        await until(lambda: len(made.heard) == 2)
        await asks.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert made.paused == {"vm-1"}


async def test_a_reload_in_the_middle_of_a_switch(workdir: Path) -> None:
    """Where it goes, and how that is spoken to, was read from the configuration before."""
    async with asking(workdir, PATTERNS) as made:
        stream = await hangs(workdir, made)
        async with trio.open_nursery() as nursery:

            async def switch() -> None:
                answer = await made.ask("switch", export="vm-1")
                assert "there is another configuration since" in answer.problems[0]

            nursery.start_soon(switch)
            await until(lambda: made.paused)
            assert (await made.gateway.reload(LISTEN + PATTERNS)).ok
            await stream.send_all(BLOCK[9:])
        assert not made.paused
        assert not made.gateway.service.switches["vm-1"]
        assert (await made.ask("switch", export="vm-1")).ok


# --- What is lost


async def test_what_is_lost_is_shown_and_forgotten(workdir: Path) -> None:
    async with asking(workdir, AND_ANOTHER) as made:
        service = made.gateway.service
        answer = await made.ask("losses")
        assert answer.done == ("nothing is lost that somebody has still to be told of",)
        client = await made.gateway.session("vm-1")
        [running] = service.running
        running.disk.losses.tell_the_next("gone", [(0, 4096), (8192, 8704)])
        running.traffic.debt.has_to_hear("cut", [(0, 512)])
        words = (
            "'vm-1' of upstream u, export 'vm-1': 4608 bytes (0-4095, 8192-8703) may be lost (cut; gone):"
            " 1 session not told yet, whoever opens it next will be told"
        )
        for export in (None, "vm-1"):
            arguments = {} if export is None else {"export": export}
            assert (await made.ask("losses", **arguments)).done == (words,)
        for other in ("vm-2", "x"):
            answer = await made.ask("losses", export=other)
            assert answer.done == ("nothing is lost that somebody has still to be told of",)
        assert "has no export" in (await made.ask("losses", export="vm-l")).problems[0]
        assert "is a pattern" in (await made.ask("losses", export="vm-*")).problems[0]
        for verb in ("pause", "switch"):
            answer = await made.ask(verb, export="vm-1")
            assert "4608 bytes (0-4095, 8192-8703) may be lost" in answer.problems[0]
            assert "accept-loss does it all the same" in answer.problems[0]
        assert not made.paused
        answer = await made.ask("losses", export="vm-1", forget=True)
        assert answer.done == (
            "'vm-1' of upstream u, export 'vm-1': what nobody was told of is forgotten; still: 512 bytes"
            " (0-511) may be lost (cut): 1 session not told yet",
        )
        assert not (await made.ask("pause", export="vm-1")).ok
        assert await client.error(Cmd.FLUSH) == Errno.EIO
        assert (await made.ask("pause", export="vm-1")).ok
        assert (await made.ask("losses")).done == (
            "nothing is lost that somebody has still to be told of",
        )


async def test_disks_that_are_left_are_shown_as_long_as_they_owe_something(workdir: Path) -> None:
    async with asking(workdir, PATTERNS) as made:
        service = made.gateway.service
        service.disks.at(service.servers["u"], "vm-2").losses.tell_the_next("gone", [(0, 512)])
        disk = service.disks.at(service.servers["u"], "vm-1")
        disk.losses.tell_the_next("gone", [(0, 512)])
        disk.is_left()
        del disk
        [shown] = (await made.ask("losses")).done
        assert shown.startswith("'vm-1' of upstream u: 512 bytes")
        service.disks._named[service.servers["u"].disks, b"hash"] = None
        assert (await made.ask("losses")).done[1].startswith("1 disk more")
        assert len((await made.ask("losses", forget=True)).done) == 2
        assert (await made.ask("losses")).done == (
            "nothing is lost that somebody has still to be told of",
        )
        assert not service.disks._kept
