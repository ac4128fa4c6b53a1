"""The verbs of the control socket that hold and switch exports: what they take, and whom they lead where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.admin.control import Misunderstood
from gateway.relay.pausing import Pauses
from gateway.relay.upkeep import see_to_upstreams
from gateway.switching import verbs_of
from gateway.wire.constants import Cmd
from tests.test_reload import BLOCK, EXPORT, LISTEN, MEMORY, House, house, until

ODD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no export": ("pause", {}, '"export"'),
    "an export that is none": ("pause", {"export": 1}, '"export"'),
    "an unknown key": ("resume", {"export": "x", "for": 3}, "unknown keys for"),
    "no number": ("pause", {"export": "x", "for": "1"}, '"for"'),
    "a truth": ("pause", {"export": "x", "within": True}, '"within"'),
    "not at all": ("pause", {"export": "x", "within": 0}, '"within"'),
    "not a number": ("pause", {"export": "x", "within": float("nan")}, '"within"'),
    "a day": ("pause", {"export": "x", "for": 86400}, "up to 3600"),
    "too patient": ("switch", {"export": "x", "within": 61}, "up to 60"),
    "a URI that is none": ("switch", {"export": "x", "uri": "memory:1M"}, "expected an NBD URI"),
    "a list of URIs": ("switch", {"export": "x", "uri": []}, '"uri"'),
    "perhaps": ("switch", {"export": "x", "close-first": 1}, '"close-first"'),
}


def verbs(gateway: House) -> dict[str, Any]:
    pauses = Pauses(gateway.service, gateway.nursery)
    return {**verbs_of(gateway.service, pauses, lambda: gateway.now.keyring)}


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
        assert answer.ok  # there is nobody who would have to go over


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
        assert (server.keep_warm, server.connect_seconds) == (0, 0.01)
        third = await gateway.client()
        await third.structured()
        third.negotiation.go("x", ())
        assert "max-connections = 2 lets" in str(await third.refused())
