"""Which disks have a home: each reason by itself, over all ways that lead to a server, and through reloads."""

from __future__ import annotations

import pytest

from gateway.cli.vocabulary import vocabulary
from gateway.config import Config, parse
from gateway.workers.homes import (
    NOTHING,
    HomeOf,
    HomesMove,
    Table,
    addresses_of,
    counted_by,
    home_of,
    said_of,
    table_of,
    table_said,
)


def config_of(text: str) -> Config:
    return parse(f'workers = 4\n[[listen]]\nuri = "nbd://127.0.0.1"\n{text}', "f", vocabulary())


def table(text: str, before: Table = NOTHING) -> Table:
    config = config_of(text)
    return table_of(config, counted=counted_by(config, kept=True), before=before)


A = ("tcp", "10.0.0.1", "10809")
B = ("tcp", "10.0.0.2", "10809")

SERVER = '[upstream.a]\nuri = "nbd://10.0.0.1"\n'
WRITES = '[[export]]\nname = "w"\nupstream = "a"\n'
WHOLE = '[[export]]\nname = "w"\nupstream = "a"\nunaligned = "error"\n'
READS = '[[export]]\nname = "r"\nupstream = "a"\nread-only = true\n'

ROWS = {
    "parts of blocks may be written": (SERVER + WRITES, HomeOf.SERVER, "canonical-names"),
    "nothing is said of exports": (SERVER, HomeOf.SERVER, "canonical-names"),
    "no two names are one disk": (
        f"{SERVER}canonical-names = true\n{WRITES}",
        HomeOf.DISK,
        "parts of blocks",
    ),
    "what is written is remembered": (SERVER + WHOLE, HomeOf.DISK, "reconnect-seconds"),
    "nothing is remembered": (
        f"{SERVER}reconnect-seconds = 0\n{WHOLE}",
        HomeOf.NOWHERE,
        "reconnect-seconds = 0",
    ),
    "nobody writes": (SERVER + READS, HomeOf.NOWHERE, "nobody writes"),
    "nobody writes, and clients share": (
        f'{SERVER}connections = "shared"\n{READS}',
        HomeOf.DISK,
        "share connections",
    ),
    "several for each client": (
        f"{SERVER}connections = 4\n{READS}",
        HomeOf.NOWHERE,
        "nobody writes",
    ),
    "nobody writes, and writers are counted": (
        f'{SERVER}{READS}policies = [ {{ use = "writers" }} ]\n',
        HomeOf.DISK,
        "policies count",
    ),
    "nobody writes, and clients are counted, for all workers together": (
        f'{SERVER}{READS}policies = [ {{ use = "limit", connections = 2 }} ]\n',
        HomeOf.NOWHERE,
        "nobody writes",
    ),
    "nobody writes, and an identity has a rate, of all workers together": (
        f"{SERVER}{READS}policies = ["
        ' { use = "rate", operations-per-second = 2, per = "identity" } ]\n',
        HomeOf.NOWHERE,
        "nobody writes",
    ),
    "nobody writes, and an export has a rate": (
        f"{SERVER}{READS}policies = ["
        ' { use = "rate", operations-per-second = 2, per = "export" } ]\n',
        HomeOf.DISK,
        "policies count",
    ),
    "nobody writes, and all is written down": (
        f'{SERVER}{READS}policies = [ {{ use = "audit", file = "/a.log" }} ]\n',
        HomeOf.NOWHERE,
        "nobody writes",
    ),
    "one way writes, another reads": (SERVER + READS + WHOLE, HomeOf.DISK, "reconnect-seconds"),
    "one way writes parts, another reads": (
        SERVER + READS + WRITES,
        HomeOf.SERVER,
        "canonical-names",
    ),
    "so many connections": (
        f"{SERVER}max-connections = 3\n{READS}",
        HomeOf.SERVER,
        "max-connections",
    ),
    "connections ahead": (f"{SERVER}warm = 1\n{READS}", HomeOf.SERVER, "warm"),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_reason(row: str) -> None:
    text, kind, why = ROWS[row]
    homed = table(text)[A]
    assert (homed.kind, homed.server) == (kind, A)
    assert why in homed.why


def test_gateways_that_keep_nothing_in_common_count_what_workers_need_not() -> None:
    """Those of a fleet."""
    text = f'{SERVER}{READS}policies = [ {{ use = "limit", connections = 2 }} ]\n'
    assert not counted_by(config_of(text), kept=True)
    assert counted_by(config_of(text), kept=False)


def test_a_server_that_is_started() -> None:
    text = f'[upstream.a]\ncommand = ["qemu-nbd", "-t", "x"]\n{READS}'
    [(at, homed)] = table(text).items()
    assert at == ("command", "qemu-nbd", "-t", "x")
    assert homed.kind is HomeOf.SERVER


def test_several_addresses_are_one_server() -> None:
    """By any upstream that leads there: what one of them shares, all have the home of."""
    text = (
        '[upstream.a]\nuris = ["nbd://10.0.0.2", "nbd://10.0.0.1"]\n'
        '[upstream.b]\nuri = "nbd://10.0.0.1"\nconnections = "shared"\n'
        f'{READS}[[export]]\nname = "s"\nupstream = "b"\nread-only = true\n'
    )
    found = table(text)
    assert found[A] == found[B]
    assert (found[A].kind, found[A].server) == (HomeOf.DISK, B)


def test_all_ways_to_a_disk_lead_to_one_home() -> None:
    text = (
        '[upstream.a]\nuri = "nbd://10.0.0.1"\ncanonical-names = true\n'
        '[upstream.b]\nuri = "nbd://10.0.0.1:10809/x"\ncanonical-names = true\n'
        '[[export]]\nname = "one"\nupstream = "a"\nupstream-name = "x"\n'
        '[[export]]\nname = "two"\nupstream = "b"\n'
    )
    config = config_of(text)
    found = table_of(config, counted=False)
    homes = set()
    for name in ("one", "two"):
        route = config.route(name)
        assert route is not None
        homes.add(home_of(found, config.upstream[route.upstream], route.upstream_name, 64))
    assert len(homes) == 1


def test_homes_are_within_the_workers() -> None:
    config = config_of(f"{SERVER}canonical-names = true\n{WRITES}")
    found = table_of(config, counted=False)
    homes = {home_of(found, config.upstream["a"], f"disk{n}", 4) for n in range(100)}
    assert homes == {0, 1, 2, 3}


def test_one_home_for_all_disks_of_a_server() -> None:
    config = config_of(SERVER)
    found = table_of(config, counted=False)
    assert len({home_of(found, config.upstream["a"], f"disk{n}", 64) for n in range(100)}) == 1


def test_no_home() -> None:
    config = config_of(SERVER + READS)
    assert home_of(table_of(config, counted=False), config.upstream["a"], "r", 4) is None


# --- Reloads


def test_what_was_decided_stays() -> None:
    """The second address alone is still known by the first."""
    both = '[upstream.a]\nuris = ["nbd://10.0.0.2", "nbd://10.0.0.1"]\n'
    before = table(both + READS)
    assert table(SERVER + READS, before)[A].server == B


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (SERVER + WRITES, f"{SERVER}canonical-names = true\n{WRITES}"),
        (SERVER + READS, SERVER + READS + WHOLE),
        (SERVER + WHOLE, f"{SERVER}warm = 1\n{WHOLE}"),
    ],
)
def test_a_reload_moves_no_home(first: str, then: str) -> None:
    for one, other in ((first, then), (then, first)):
        with pytest.raises(HomesMove, match=r"upstream a: .* takes a restart"):
            table(other, table(one))


def test_two_servers_do_not_become_one() -> None:
    apart = f'{SERVER}[upstream.b]\nuri = "nbd://10.0.0.2"\n{READS}'
    before = table(apart)
    with pytest.raises(HomesMove, match="were two servers"):
        table(f'[upstream.a]\nuris = ["nbd://10.0.0.1", "nbd://10.0.0.2"]\n{READS}', before)


def test_a_server_that_has_gone_is_known_still() -> None:
    """Its last sessions may be there."""
    other = f'[upstream.a]\nuri = "nbd://10.0.0.2"\n{READS}'
    assert A in table(other, table(SERVER + READS))


def test_another_process_reads_the_same_table() -> None:
    found = table(SERVER + WRITES)
    assert table_said(said_of(found)) == found


def test_addresses_are_those_that_disks_go_by() -> None:
    [upstream] = config_of(
        '[upstream.a]\nuri = "nbd+unix:///?socket=/run/../x"\n'
    ).upstream.values()
    assert addresses_of(upstream) == (("unix", "/run/../x"),)
