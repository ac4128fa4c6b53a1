"""What is said of `[fleet]`: its keys, and what a fleet cannot do yet."""

from __future__ import annotations

import pytest

from gateway.cli.vocabulary import vocabulary
from gateway.config import ConfigError, parse

LISTEN = '[[listen]]\nuri = "nbd://127.0.0.1:10810"\n'
SERVER = '[upstream.u]\nuri = "nbd://127.0.0.1"\n'
FLEET = """[fleet]
etcd = "http://127.0.0.1:2379"
name = "gw-1"
address = "nbds://127.0.0.1:10812"
certificates = "/fleet"
"""


def problems(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "t", vocabulary())
    return "\n".join(problem.message for problem in caught.value.problems)


def test_what_is_left_out() -> None:
    fleet = parse(LISTEN + SERVER + FLEET, "t").fleet
    assert fleet is not None
    assert fleet.etcd == ("http://127.0.0.1:2379",)
    assert (fleet.lease_seconds, fleet.prefix, fleet.fence) == (10, "/nbd-gateway/", None)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("etcd", "[]", "expected text in quotes or a list of it"),
        ("etcd", '"127.0.0.1:2379"', 'expected "https://HOST:PORT"'),
        ("etcd", '"http://127.0.0.1"', 'expected "https://HOST:PORT"'),
        ("etcd", '"http://h:99999"', 'expected "https://HOST:PORT"'),
        ("etcd", '"https://h:1"', 'need etcd-certificates = "DIRECTORY"'),
        ("name", '"a/b"', "expected a name of up to 64 letters"),
        ("name", f'"{"a" * 65}"', "expected a name of up to 64 letters"),
        ("address", '"nbd://127.0.0.1:1"', 'expected "nbds://HOST:PORT"'),
        ("address", '"nbds://127.0.0.1/x"', 'expected "nbds://HOST:PORT"'),
        ("address", '"nbds://0.0.0.0:1"', "expected an address of this gateway's own"),
        ("address", '"nbds://[::]:1"', "expected an address of this gateway's own"),
        ("lease-seconds", "1", "expected 2 or more"),
        ("etcd-pasword-file", '"/p"', 'unknown key, did you mean "etcd-password-file"?'),
        ("prefix", '"/a"', 'expected a path that ends in "/"'),
        ("fence", '"/sbin/cut"', "expected a program and its arguments"),
        ("fence", "[]", "expected a program and its arguments"),
        ("etcd-user", '"u"', "this goes with etcd-password-file"),
        ("etcd-password-file", '"/p"', "this goes with etcd-user"),
        ("etcd-certificates", '"/c"', "this is for members with https:"),
    ],
)
def test_what_is_wrong(key: str, value: str, expected: str) -> None:
    lines = [line for line in FLEET.splitlines() if not line.startswith(f"{key} ")]
    text = "\n".join([*lines, f"{key} = {value}"])
    assert expected in problems(LISTEN + SERVER + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers = 2\n" + LISTEN + SERVER, "a gateway of a fleet has one process yet"),
        (LISTEN + 'style = "oldstyle"\n' + SERVER, "oldstyle clients are not led"),
        (LISTEN + '[upstream.u]\nuri = "memory:1M"\n', "would have a server of its own"),
        (LISTEN + '[upstream.u]\ncommand = ["x"]\n', "would have a server of its own"),
        (LISTEN + SERVER + "warm = 1\n", "connections that are kept ready"),
        (LISTEN + SERVER + '[tickets]\ndirectory = "/t"\n', "write etcd = true in its place"),
        (
            LISTEN + SERVER + "[control]\nreload-on-change = true\n",
            "a gateway of a fleet does not reload yet",
        ),
        (
            LISTEN
            + SERVER
            + '[[export]]\nname = "a*"\nupstream = "u"\n'
            + 'policies = [{ use = "limit", connections = 2 }]\n',
            "each gateway of the fleet would count its own: move it into an [[export]]",
        ),
    ],
)
def test_what_a_fleet_cannot_do_yet(text: str, expected: str) -> None:
    assert expected in problems(text + FLEET)


def test_tickets_are_in_etcd_where_there_is_a_fleet() -> None:
    tickets = "[tickets]\netcd = true\n"
    control = '[control]\nsocket = "c"\n'
    assert parse(LISTEN + SERVER + control + tickets + FLEET, "t").tickets.are_kept
    assert "there is no [fleet]" in problems(LISTEN + SERVER + control + tickets)
    assert "[control] or [admin] has it" in problems(LISTEN + SERVER + tickets + FLEET)


def test_an_export_of_an_exact_name_may_be_counted() -> None:
    counted = '[[export]]\nname = "a"\nupstream = "u"\n'
    counted += 'policies = [{ use = "limit", connections = 2 }]\n'
    assert parse(LISTEN + SERVER + counted + FLEET, "t", vocabulary()).fleet is not None


LONGEST, FENCED = 30 + 2 * 10 + 30, 60 + 2 * 10 + 30


def reconnect_seconds(more: str = "", fleet: str = "") -> dict[str, float]:
    found = parse(LISTEN + SERVER + more + FLEET + fleet, "t").upstream
    return {name: each.reconnect_seconds for name, each in found.items()}


def test_sessions_live_on_for_twice_as_long_as_another_home_may_take() -> None:
    assert reconnect_seconds() == {"u": 2 * LONGEST}
    assert reconnect_seconds(fleet='fence = ["/sbin/cut"]\n') == {"u": 2 * FENCED}
    assert reconnect_seconds("late-write-seconds = 5\n", "lease-seconds = 2\n") == {"u": 2 * 39}
    assert reconnect_seconds("reconnect-seconds = 1000\n") == {"u": 1000}
    assert reconnect_seconds("reconnect-seconds = 0\n") == {"u": 0}
    # Without a fleet nothing of it holds.
    assert parse(LISTEN + SERVER, "t").upstream["u"].reconnect_seconds == 60


def test_what_is_on_its_way_is_so_for_the_server_whatever_leads_there() -> None:
    more = '[upstream.v]\nuri = "nbd://127.0.0.1"\nlate-write-seconds = 100\n'
    more += '[upstream.w]\nuri = "nbd://127.0.0.2"\n'
    exports = '[[export]]\nname = "d"\nupstream = "u"\n'
    assert reconnect_seconds(more + exports) == {"u": 300, "v": 300, "w": 160}
    more += f"reconnect-seconds = 160\n{exports}"
    assert reconnect_seconds(more) == {"u": 300, "v": 300, "w": 160}


@pytest.mark.parametrize(
    ("more", "fleet", "longest", "least", "got"),
    [
        ("", "", LONGEST, 160, 159.5),
        ("", 'fence = ["/sbin/cut"]\n', FENCED, 220, 160),
        ("late-write-seconds = 5\n", "lease-seconds = 2\n", 39, 78, 77),
        ('late-write-seconds = "x"\n', "lease-seconds = true\n", LONGEST, 160, 1),
    ],
)
def test_sessions_that_would_end_before_another_home_begins(
    more: str, fleet: str, longest: float, least: float, got: float
) -> None:
    found = problems(LISTEN + SERVER + more + f"reconnect-seconds = {got}\n" + FLEET + fleet)
    said = (
        f"may wait {longest:g} s for its home: expected twice that, {least:g}, or more, got {got:g}"
    )
    assert said in found
