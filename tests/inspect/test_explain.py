"""What a client gets, before there is one: what `explain` finds is what the gateway does."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from gateway.cli.vocabulary import vocabulary
from gateway.clients.client import serve_client
from gateway.config import Config, parse
from gateway.embedded import MemoryDisk, Server
from gateway.hub.hub import Hub
from gateway.identity import NOBODY, Identity, UnixPeer, parse_address
from gateway.inspect.explain import PolicyBug, explain
from gateway.inspect.report import Report
from gateway.policy import Client
from gateway.scan.plan import Handling
from gateway.sessions.service import Service
from gateway.upstream.configured import upstreams
from gateway.wire.constants import BASE_ALLOCATION, Cmd, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.limits import MIB
from tests.embedded.peers import Client as Peer
from tests.embedded.peers import serving_once, socket_pair
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

NOON = datetime(2026, 11, 21, 12).astimezone()  # a Saturday
BITMAP = "qemu:dirty-bitmap:bitmap0"

FRAME = """
[[listen]]
uri = "nbd://127.0.0.1:0"
[[listen]]
uri = "nbd+unix:///?socket=/nonexistent/s"
[upstream.disk]
uri = "{uri}"
{connections}
{rules}
[[export]]
name = "vm-1"
upstream = "disk"
upstream-name = ""
{export}
"""


def config_of(
    rules: str = "", export: str = "", uri: str = "memory:16M", connections: str = ""
) -> Config:
    text = FRAME.format(rules=rules, export=export, uri=uri, connections=connections)
    return parse(text, "test", vocabulary())


def rule(policies: str = "", who: str = "", more: str = "") -> str:
    uses = f"policies = [ {policies} ]" if policies else ""
    return f"[[rule]]\nwho = {{ {who} }}\n{uses}\n{more}\n"


def unix(uid: int) -> Identity:
    return Identity("unix", unix=UnixPeer(1, uid, uid))


def at(address: str) -> Identity:
    return Identity(address, parse_address(address))


def certified(cn: str, *more: str) -> Identity:
    return Identity("tls", common_names=(cn, *more), fingerprint=64 * "0", tls_version="TLSv1.3")


async def asked(
    config: Config, identity: Identity = NOBODY, name: str = "vm-1", when: datetime = NOON
) -> Report:
    with trio.fail_after(HANG_SECONDS):
        return await explain(config, name, Client(identity, when, hypothetical=True))


# --- Rules

RULES = (
    rule(who='network = ["10.0.0.0/8"]', more='name = "near"')
    + rule(who="unix-user = 7", more="deny = true")
    + rule(who="unix-user = 8", more="deny = true\nhide = true\ndisconnect = true")
    + rule(who="unix-user = 9", more='deny = true\nmode = "observe"')
    + rule('{ use = "schedule", days = ["sat"], hours = ["09:00-13:00"] }', "unix-user = [9, 10]")
)


@pytest.mark.parametrize(
    ("identity", "found", "tried"),
    [
        (at("10.1.2.3"), "rule 'near'", []),
        (
            at("11.1.2.3"),
            Rep.ERR_POLICY,
            ["it comes from 11.1.2.3"] + 4 * ["it does not come over"],
        ),
        (unix(7), Rep.ERR_POLICY, ["it has no address"]),
        (unix(8), Rep.ERR_UNKNOWN, ["it has no address", "its Unix user is 8"]),
        (
            unix(9),
            "rule 5",
            ["it has no", "its Unix", "its Unix", "it denies, and is only observed"],
        ),
        (unix(10), "rule 5", ["it has no"] + 3 * ["its Unix user is 10"]),
    ],
    ids=["network", "none-matches", "denied", "hidden", "observed", "schedule"],
)
async def test_rules(identity: Identity, found: str | Rep, tried: list[str]) -> None:
    report = await asked(config_of(RULES), identity)
    whys = [why for _label, why in report.tried]
    assert len(whys) == len(tried)
    assert all(why.startswith(begin) for why, begin in zip(whys, tried, strict=True))
    if isinstance(found, str):
        assert report.grant is not None
        assert report.refusal is None
        assert (report.grant.rule, len(report.views)) == (found, 3)
    else:
        assert report.refusal is not None
        assert (report.refusal.reply, report.views) == (found, [])
    assert report.would == (("rule 4 denies it",) if identity == unix(9) else ())
    assert report.disconnect is (identity == unix(8))


async def test_a_rule_that_does_not_hold_at_that_time() -> None:
    sunday = NOON.replace(day=22)
    report = await asked(config_of(RULES), unix(10), when=sunday)
    assert report.why == "no rule lets it through"
    [*_, (label, why)] = report.tried
    assert label == "rule 5"
    assert why.startswith("schedule says that it does not hold at Sun 12:00")


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        (certified("backup-7"), None),
        (certified("backup-7", "admin"), "its certificate has 2 names for cn"),
        (certified("joe"), "cn is 'joe'"),
        (Identity("psk", psk_user="joe", tls_version="TLSv1.3"), "it has shown no certificate"),
    ],
)
async def test_a_rule_for_certificates(identity: Identity, why: str | None, tmp_path: Path) -> None:
    from gateway.cli import main

    assert main(["pki", "init", str(tmp_path / "pki")]) == 0
    config = parse(
        f"""
        [[listen]]
        uri = "nbds://127.0.0.1:0"
        certificates = "{tmp_path / "pki"}"
        [upstream.disk]
        uri = "memory:1M"
        [[rule]]
        who = {{ certificate = {{ cn = "backup-*" }} }}
        [[export]]
        name = "vm-1"
        upstream = "disk"
        upstream-name = ""
        """,
        "test",
        vocabulary(),
    )
    report = await asked(config, identity)
    assert (report.refusal is None) is (why is None)
    assert [said.startswith(why or "?") for _label, said in report.tried] == [True] * bool(why)


async def test_an_export_for_clients_over_tls(tmp_path: Path) -> None:
    from gateway.cli import main

    assert main(["pki", "init", str(tmp_path / "pki")]) == 0
    config = parse(
        f"""
        [[listen]]
        uri = "nbd://127.0.0.1:0"
        tls = "allow"
        certificates = "{tmp_path / "pki"}"
        [upstream.disk]
        uri = "memory:1M"
        [[export]]
        name = "vm-1"
        upstream = "disk"
        upstream-name = ""
        tls = "require"
        """,
        "test",
        vocabulary(),
    )
    report = await asked(config, at("10.0.0.1"))
    assert report.refusal is not None
    assert report.refusal.reply == Rep.ERR_TLS_REQD
    assert report.why == "the export is only for clients over TLS"
    assert (await asked(config, certified("anybody"))).refusal is None


# --- The offer


def shape(report: Report) -> list[str]:
    return [step.name for step in report.views[-1].steps]


async def test_who_changed_a_flag() -> None:
    config = config_of(
        rule('{ use = "flags", mask = ["SEND_CACHE"] }, { use = "readonly" }'),
        uri="legacy:qemu-3.0",
    )
    report = await asked(config)
    best = report.views[-1]
    assert shape(report) == ["upstream", "quirks", "gateway", "readonly", "flags"]
    flags = {step.name: step.flags for step in best.steps}
    assert flags["upstream"] & ~flags["quirks"] == Flag.CAN_MULTI_CONN
    assert flags["quirks"] & ~flags["upstream"] == Flag.SEND_CACHE
    assert flags["readonly"] & ~flags["gateway"] == Flag.READ_ONLY
    assert flags["readonly"] & ~flags["flags"] == Flag.SEND_CACHE
    assert [bool(view.told.flags & Flag.SEND_DF) for view in report.views] == [False, True, True]
    assert best.ways[Cmd.WRITE].handling is Handling.REFUSED


async def test_a_policy_that_changes_nothing_is_in_the_chain_and_takes_no_step() -> None:
    report = await asked(config_of(rule('{ use = "flags", mask = [] }')))
    assert shape(report) == ["upstream", "quirks", "gateway"]
    assert report.grant is not None
    assert [placed.name for placed in report.grant.chain] == ["flags"]


def partitioned(path: Path) -> str:
    """A disk of 16 MiB whose second partition has 2 MiB at 4 MiB."""
    entries = struct.pack("<4xB3xII", 0x83, 2048, 2048) + struct.pack("<4xB3xII", 0x83, 8192, 4096)
    path.write_bytes(bytes(446) + entries + bytes(32) + b"\x55\xaa" + bytes(16 * MIB - 512))
    return f"file:{path}"


async def test_a_window_that_stands_on_the_disk(tmp_path: Path) -> None:
    config = config_of(
        rule('{ use = "protect", ranges = ["0-511"] }, { use = "window", partition = 2 }'),
        uri=partitioned(tmp_path / "disk"),
    )
    report = await asked(config)
    best = report.views[-1]
    assert (best.steps[0].size, best.told.size, best.promised.base) == (16 * MIB, 2 * MIB, 4 * MIB)
    assert shape(report)[-1] == "window"
    [barred] = best.restrictions[Cmd.WRITE]
    assert (barred.what, barred.error) == ("bytes 0 to 511", "EPERM")
    assert best.ways[Cmd.WRITE].handling is Handling.FAST


async def test_no_such_partition(tmp_path: Path) -> None:
    config = config_of(
        rule('{ use = "window", partition = 3 }'), uri=partitioned(tmp_path / "disk")
    )
    report = await asked(config)
    assert report.refusal is not None
    assert report.refusal.reply == Rep.ERR_POLICY
    assert "the MBR has no such partition" in report.why


async def test_contexts() -> None:
    contexts = '{ use = "contexts", deny = ["base:*", "qemu:*"] }'
    observed = contexts.replace("}", ', mode = "observe" }')
    for policies, fates in (
        (contexts, {BASE_ALLOCATION: ("contexts", False, None), BITMAP: ("contexts", True, None)}),
        (observed, dict.fromkeys((BASE_ALLOCATION, BITMAP), (None, False, "contexts"))),
    ):
        report = await asked(config_of(rule(policies), uri="legacy:qemu-3.0"))
        said = {
            each.name: (each.by, each.fails is not None, each.would) for each in report.contexts
        }
        assert said == fates
        told = [context.name for context in report.views[-1].promised.contexts]
        assert told == [name for name, fate in fates.items() if fate[0] is None]


async def test_bitmaps_that_may_move() -> None:
    config = config_of(
        export="read-only = true\ncontexts.stable-only = true", uri="legacy:qemu-3.0"
    )
    by = {each.name: each.by for each in (await asked(config)).contexts}
    assert by == {BASE_ALLOCATION: None, BITMAP: "contexts.stable-only"}


# --- Connections


@pytest.mark.parametrize("framing", [SIMPLE, STRUCTURED, EXTENDED], ids=str)
@pytest.mark.parametrize(
    ("uri", "written", "count", "promised"),
    [
        ("memory:1M", '"per-client"', 1, True),
        ("memory:1M", '"shared"', 1, True),
        ("memory:1M", "4", 4, True),
        ("memory:1M", '"shared:4"', 4, True),
        ("legacy:qemu-3.0", '"per-client"', 1, False),
        ("legacy:qemu-3.0", '"shared"', 1, True),
        ("legacy:qemu-3.0", "4", 1, False),
        ("legacy:qemu-3.0", '"shared:4"', 1, True),
    ],
)
async def test_connections(
    uri: str, written: str, count: int, promised: bool, framing: Framing
) -> None:
    report = await asked(config_of(uri=uri, connections=f"connections = {written}"))
    [view] = [view for view in report.views if view.client is framing]
    assert str(report.wanted) == written.strip('"')
    assert view.connections.count == count
    assert bool(view.connections.reason) is (report.wanted.count > count)
    # What the server said is shown as it is; what the gateway makes of it, in its own step.
    steps = {step.name: bool(step.flags & Flag.CAN_MULTI_CONN) for step in view.steps}
    assert steps == {"upstream": True, "quirks": uri.startswith("memory"), "gateway": promised}
    assert bool(view.told.flags & Flag.CAN_MULTI_CONN) is promised


async def test_connections_that_are_required() -> None:
    required = "connections = 4\nconnections-required = true"
    assert (await asked(config_of(connections=required))).refusal is None
    report = await asked(config_of(uri="legacy:qemu-3.0", connections=required))
    assert report.refusal is not None
    assert (report.refusal.reply, report.views) == (Rep.ERR_POLICY, [])
    assert "connections-required = true: one connection instead of 4: the server" in report.why


# --- Commands


async def test_hooks_and_what_stands_before_and_behind_them() -> None:
    config = config_of(
        rule(
            '{ use = "zero", how = "emulate" }, { use = "commands", write-range = "1M-",'
            ' deny = ["TRIM"] }'
        )
    )
    best = (await asked(config)).views[-1]
    assert best.ways[Cmd.WRITE_ZEROES].handling is Handling.TRANSLATED
    assert "zero" in best.ways[Cmd.WRITE_ZEROES].reason
    assert best.ways[Cmd.TRIM].handling is Handling.REFUSED
    whats = [each.what for each in best.restrictions[Cmd.WRITE_ZEROES]]
    assert f"bytes 0 to {MIB - 1} at commands" in whats
    assert [each.what for each in best.restrictions[Cmd.WRITE]] == [f"bytes 0 to {MIB - 1}"]
    first = best.restrictions[Cmd.TRIM][0]
    assert (first.what, first.error) == ("always", "EPERM")


async def test_flags_of_commands() -> None:
    config = config_of(rule('{ use = "flags", mask = ["SEND_FLUSH"] }'))
    best = (await asked(config)).views[-1]
    assert [each.what for each in best.restrictions[Cmd.WRITE]] == ["FUA is always sent on"]


async def test_what_is_observed() -> None:
    config = config_of(
        rule('{ use = "readonly", mode = "observe" }, { use = "protect", ranges = ["0-9"] }')
    )
    best = (await asked(config)).views[-1]
    assert not best.told.flags & Flag.READ_ONLY
    assert best.would == ("flags that would be shown: READ_ONLY",)
    assert [each.what for each in best.restrictions[Cmd.WRITE]] == ["bytes 0 to 9"]
    assert not best.would_restrict


async def test_a_bug_of_a_policy_is_told_as_one() -> None:
    config = config_of(rule('{ use = "readonly" }'))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("policies.readonly.Readonly.admit", lambda *_: 1 / 0)
        with pytest.raises(PolicyBug, match="ZeroDivisionError: division by zero"):
            await asked(config)


async def test_an_observed_window_is_told_and_not_shown() -> None:
    config = config_of(rule('{ use = "window", size = "1M", mode = "observe" }'))
    best = (await asked(config)).views[-1]
    assert best.told.size == 16 * MIB
    assert best.would == (f"window: {MIB} bytes from 0 on are shown",)


async def test_limits() -> None:
    config = config_of(
        rule('{ use = "limit", in-flight = 4 }, { use = "rate", bytes-per-second = "1M" }')
    )
    in_flight, rate = (await asked(config)).limits
    assert (in_flight.policy, in_flight.in_flight, in_flight.charges) == ("limit", 4, ())
    [(bucket, unit)] = rate.charges
    assert (rate.policy, bucket.per_second, unit.value) == ("rate", MIB, "bytes")
    assert not rate.observed


async def test_a_rate_that_is_observed_is_told() -> None:
    config = config_of(rule('{ use = "rate", bytes-per-second = "1M", mode = "observe" }'))
    [rate] = (await asked(config)).limits
    assert (str(*rate.charges), rate.observed) == ("1048576 bytes per second", True)


@pytest.mark.parametrize(
    ("uri", "written", "why"),
    [
        ("memory:1M", 'connections = "shared"', "clients share one connection"),
        ("memory:1M", "connections = 4", "requests are spread over 4 connections"),
        ("memory:1M", 'connections = "shared:4"', "clients share 4 connections"),
        (
            "memory:1M",
            "stall-seconds = 5",
            "what its connection leaves unanswered may be asked over another (stall-seconds)",
        ),
        ("legacy:qemu-3.0", 'connections = "shared:4"', "clients share one connection"),
    ],
)
async def test_why_nothing_is_relayed_as_it_is(uri: str, written: str, why: str) -> None:
    config = config_of(uri=uri, connections=written)
    report = await asked(config, unix(os.getuid()))
    for view in report.views:
        assert view.ways[Cmd.READ].handling is Handling.TRANSLATED
        assert view.ways[Cmd.WRITE].reason == why
    async with gateway_of(config, tcp=False) as (client, service):
        contexts = [each.name for each in report.views[1].promised.contexts]
        await client.go("vm-1", contexts=contexts)
        await trio.testing.wait_all_tasks_blocked()
        [running] = service.running
        assert running.traffic.plan.ways == report.views[1].ways


async def test_who_has_one_connection_instead_of_several_is_relayed_as_ever() -> None:
    config = config_of(uri="legacy:qemu-3.0", connections="connections = 4")
    report = await asked(config, unix(os.getuid()))
    assert report.views[1].ways[Cmd.WRITE].handling is Handling.FAST
    async with gateway_of(config, tcp=False) as (client, service):
        contexts = [each.name for each in report.views[1].promised.contexts]
        await client.go("vm-1", contexts=contexts)
        await trio.testing.wait_all_tasks_blocked()
        [running] = service.running
        assert running.traffic.plan.ways == report.views[1].ways


# --- Nothing is left behind


@pytest.mark.parametrize("identity", [unix(7), unix(9)])
async def test_nobody_is_written_down(identity: Identity, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit = f'{{ use = "audit", file = "{path}" }}'
    rules = rule("", "unix-user = 7", "deny = true") + rule()
    config = config_of(rules, f"policies = [ {audit} ]")
    report = await asked(config, identity)
    assert (report.refusal is None) is (identity == unix(9))
    assert not path.exists()


# --- What is said is what is done

PLACES = {
    "nothing": "",
    "readonly": '{ use = "readonly" }',
    "flags": '{ use = "flags", mask = ["SEND_TRIM", "SEND_DF", "CAN_MULTI_CONN"] }',
    "contexts": '{ use = "contexts", deny = ["*"], denied = "omit" }',
    "commands": '{ use = "commands", deny = ["WRITE_ZEROES"], longest-request = "1M" }',
    "window": '{ use = "window", partition = 2 }, { use = "truncate", round-down = "1M" }',
    "blocksize": '{ use = "blocksize", minimum = 4096 }',
}


CONNECTIONS = {
    "shared": 'connections = "shared"',
    "spread": "connections = 4",
    "shared-and-spread": 'connections = "shared:4"',
    "watched": "stall-seconds = 5",
    "verified": 'connections = "shared"\nunflushed = "verify"',
}
ROWS = [pytest.param(policies, "", id=name) for name, policies in PLACES.items()] + [
    pytest.param(PLACES[name], connections, id=f"{name}-{how}")
    for name in ("nothing", "flags", "contexts", "window")
    for how, connections in CONNECTIONS.items()
]


@asynccontextmanager
async def gateway_of(config: Config, *, tcp: bool) -> AsyncIterator[tuple[Peer, Service]]:
    """A client of a gateway that serves this configuration."""
    log = structlog.wrap_logger(structlog.testing.CapturingLogger())
    async with trio.open_nursery() as nursery, upstreams(config, nursery, None) as servers:
        service = Service(config, servers, Hub(), log)
        nursery.start_soon(service.hub.run)
        ours: trio.SocketStream
        if tcp:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            ours = await trio.open_tcp_stream("127.0.0.1", port)
            theirs = await listener.accept()
            await listener.aclose()
        else:
            ours, theirs = socket_pair()
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as clients, ours:
                clients.start_soon(partial(serve_client, service, config.listen[0]), theirs)
                yield Peer(ours), service
                await ours.aclose()
        nursery.cancel_scope.cancel()
        service.hub.close()


@pytest.mark.parametrize("framing", [SIMPLE, STRUCTURED, EXTENDED], ids=str)
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "network"])
@pytest.mark.parametrize(("policies", "connections"), ROWS)
async def test_a_client_is_told_what_was_said(
    policies: str, connections: str, tcp: bool, framing: Framing, tmp_path: Path
) -> None:
    """For everybody else there is a rule that shows something else."""
    who = 'network = "127.0.0.1"' if tcp else f"unix-user = {os.getuid()}"
    others = rule('{ use = "window", size = 512 }')
    config = config_of(
        rule(policies, who) + others,
        uri=partitioned(tmp_path / "disk"),
        connections=connections,
    )
    report = await asked(config, at("127.0.0.1") if tcp else unix(os.getuid()))
    [said] = [view for view in report.views if view.client is framing]
    async with gateway_of(config, tcp=tcp) as (client, service):
        told = await client.go(
            "vm-1",
            structured=framing is STRUCTURED,
            extended=framing is EXTENDED,
            contexts=[each.name for each in said.promised.contexts],
        )
        await trio.testing.wait_all_tasks_blocked()
        [running] = service.running
        assert running.traffic.plan.ways == said.ways
        assert running.opened.uplink.export.framing is said.link
    assert told.export is not None
    assert (told.export.size, told.export.flags) == (said.told.size, said.told.flags)
    assert told.block_sizes == said.told.block_sizes
    assert said.told.size != 512


@pytest.mark.parametrize("denied", ['"omit"', '"fail"'])
async def test_a_client_has_the_contexts_that_were_said(denied: str) -> None:
    contexts = f'{{ use = "contexts", deny = ["qemu:*"], denied = {denied} }}'
    config = config_of(rule(contexts), uri="legacy:qemu-3.0")
    report = await asked(config, unix(os.getuid()))
    [kept_back] = [each for each in report.contexts if each.by is not None]
    async with gateway_of(config, tcp=False) as (client, _service):
        await client.structured()
        client.negotiation.ask_contexts("vm-1", [], select=False)
        listed = await client.answered()
        assert [each.name for each in listed.contexts] == [
            each.name for each in report.contexts if each.by is None
        ]
        client.negotiation.ask_contexts("vm-1", [kept_back.name], select=True)
        if kept_back.fails is None:
            assert not (await client.answered()).contexts
        else:
            refused = await client.refused()
            assert refused.reply == Rep.ERR_POLICY
            assert kept_back.fails in refused.text


@pytest.mark.parametrize("hide", [False, True])
async def test_a_client_that_is_denied_is_told_what_was_said(hide: bool) -> None:
    config = config_of(rule(who="tls = false", more=f"deny = true\nhide = {str(hide).lower()}"))
    report = await asked(config, unix(os.getuid()))
    assert report.refusal is not None
    async with gateway_of(config, tcp=False) as (client, _service):
        await client.greeting()
        client.negotiation.go("vm-1", ())
        refused = await client.refused()
    assert (refused.reply, refused.text) == (report.refusal.reply, report.refusal.text)


async def test_a_server_that_takes_one_connection_is_told_of_as_far_as_that_goes() -> None:
    """qemu-nbd up to 3.0 without -t ends with it."""
    server = Server({"": MemoryDisk(1 << 20)})
    async with serving_once(server) as port:
        found = await asked(config_of(uri=f"nbd://127.0.0.1:{port}"))
    assert found.refusal is None
    [view] = found.views
    assert view.told.size == 1 << 20
    assert f"127.0.0.1:{port}" in found.gone
