"""What servers are made of: what they share with others, and what goes along when an export is switched."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import trio

from gateway.config import Config, parse
from gateway.losses.survival import Survival
from gateway.upstream.configured import Servers, servers_of, switched_to
from gateway.upstream.mode import Mode
from gateway.upstream.server import Server
from gateway.uri import NbdUri, parse_nbd_uri


def config(*upstreams: str) -> Config:
    """A configuration with upstreams a, b, ... that say this."""
    tables = [f"[upstream.{name}]\n{keys}\n" for name, keys in zip("abcd", upstreams, strict=False)]
    exports = [f'[[export]]\nname = "{n}"\nupstream = "{n}"\n' for n in "abcd"[: len(upstreams)]]
    return parse('[[listen]]\nuri = "nbd://here"\n' + "".join(tables + exports), "test")


NONE = Servers()


async def made(
    *upstreams: str, before: Servers = NONE, switched: tuple[Server, ...] = ()
) -> Servers:
    async with trio.open_nursery() as nursery:
        return servers_of(config(*upstreams), nursery, None, before, switched=switched)


def switched(uri: str, servers: Servers, *others: Server, upstream: str = "a") -> Server:
    led_to = [*servers.servers.values(), *others]
    return switched_to(parse_nbd_uri(uri), upstream, servers.settings[upstream], led_to, None)


def backend(server: Server) -> object:
    assert server.recipe is not None
    return server.recipe.backend


# --- Whose disks


ONE = {
    "one URI": ('uri = "nbd://h"', 'uri = "nbd://h"'),
    "one address": ('uri = "nbd://H:10809/x"', 'uri = "nbd://h/y"'),
    "with TLS and without": ('uri = "nbds://h"', 'uri = "nbd://h"'),
    "a socket": ('uri = "nbd+unix:///x?socket=/s"', 'uri = "nbd+unix:///?socket=/s"'),
    "a socket from here": (
        f'uri = "nbd+unix:///?socket={Path.cwd() / "s"}"',
        'uri = "nbd+unix:///?socket=s"',
    ),
    "vsock": ('uri = "nbd+vsock://3:1"', 'uri = "nbd+vsock://3:1/x"'),
    "one of several": ('uris = ["nbd://g", "nbd://h"]', 'uri = "nbd://h"'),
    "by another": ('uri = "nbd://g"', 'uri = "nbd://h"', 'uris = ["nbd://h", "nbd://g"]'),
}
TWO = {
    "ports": ('uri = "nbd://h"', 'uri = "nbd://h:10810"'),
    "hosts": ('uri = "nbd://h"', 'uri = "nbd://g"'),
    "sockets": ('uri = "nbd+unix:///?socket=/s"', 'uri = "nbd+unix:///?socket=/t"'),
    "CIDs": ('uri = "nbd+vsock://3:1"', 'uri = "nbd+vsock://4:1"'),
    "nothing in common": ('uris = ["nbd://g", "nbd://h"]', 'uri = "nbd://i"'),
    "in memory": ('uri = "memory:1M"', 'uri = "memory:1M"'),
    "commands": ('command = ["nbdkit", "null"]', 'command = ["nbdkit", "null"]'),
}


@pytest.mark.parametrize("one", ONE)
async def test_one_server(one: str) -> None:
    found = await made(*ONE[one])
    assert found.servers["a"].disks == found.servers["b"].disks


@pytest.mark.parametrize("two", TWO)
async def test_two_servers(two: str) -> None:
    found = await made(*TWO[two])
    assert found.servers["a"].disks != found.servers["b"].disks


async def test_a_file_is_one_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    (tmp_path / "link").symlink_to("disk")
    found = await made(*(f'uri = "file:{tmp_path / name}"' for name in ("disk", "link")))
    assert found.servers["a"].disks == found.servers["b"].disks
    for each in found.backends.values():
        await each.end()


async def test_who_goes_to_one_address_keeps_to_one_of_the_network() -> None:
    found = await made('uri = "nbd://h/x"', 'uri = "nbd://h/y"', 'uris = ["nbd://g", "nbd://h"]')
    a, b, c = (found.backends[name].diallers for name in "abc")
    assert a[0] is b[0] is c[1]
    assert backend(switched("nbd://g", found)).diallers == (c[0],)  # type: ignore[attr-defined]


async def test_a_reload_knows_what_was_found() -> None:
    before = await made('uris = ["nbd://g", "nbd://h"]', 'uri = "memory:1M"')
    g, memory = before.servers["a"].disks, before.servers["b"].disks
    after = await made('uri = "nbd://h"\nwarm = 1', 'uri = "memory:1M"\nwarm = 1', before=before)
    assert (after.servers["a"].disks, after.servers["b"].disks) == (g, memory)
    again = await made('uri = "memory:1M"', 'uri = "nbd://g:10809"', before=after)
    assert (again.servers["a"].disks, again.servers["b"].disks) == (memory, g)


# --- Where exports are switched to


SETTINGS = """uri = "nbd://h"
connect-seconds = 3
negotiate-seconds = 4
keepalive-seconds = 5
user-timeout-seconds = 6
quirks = ["qemu-offset-reads"]
trust-allocation = true
same-storage = true
max-connections = 7
connections = "shared"
unflushed = "verify"
reconnect-seconds = 8
late-write-seconds = 9
stall-seconds = 10
warm = 2
health-check-seconds = 11"""

ITS_OWN = {
    *("name", "recipe", "disks", "where", "slots", "connector", "tell"),
    *("told", "listed", "ladder", "examined", "links"),
}
"""What has to do with where a server is, and what has been learnt of it."""


def test_defaults_are_the_configurations_alone() -> None:
    choices = [*fields(Mode), *fields(Survival)]
    assert not [each.name for each in choices if each.default is not MISSING]


async def test_an_export_that_is_switched_keeps_all_settings() -> None:
    found = await made(SETTINGS)
    there = switched("nbd://g", found)
    own, its = vars(found.servers["a"]), vars(there)
    assert own.keys() == its.keys()
    assert {key: its[key] for key in its.keys() - ITS_OWN} == {
        key: own[key] for key in own.keys() - ITS_OWN
    }
    assert (there.name, there.disks) == ("nbd://g:10809", ("tcp", "g", "10809"))
    there.come_into_force(lambda _news: None)
    assert there.slots.limiter.total_tokens == 7


async def test_a_switch_to_a_server_of_the_configuration_leads_to_it() -> None:
    found = await made('uri = "nbd://h"', 'uri = "nbd://g/x"', 'uri = "nbd://g"')
    assert backend(switched("nbd://g/y", found)) is found.backends["b"]
    assert backend(switched("nbd://g/y", found, upstream="c")) is found.backends["c"]
    assert backend(switched("nbd://h/y", found)) is found.backends["a"]


async def test_two_switches_to_one_address_lead_to_one_server() -> None:
    found = await made('uri = "nbd://h"', 'uri = "nbd://i"\nwarm = 1')
    there = switched("nbd://g", found)
    assert switched("nbd://g:10809", found, there) is there
    by_others = switched("nbd://g", found, there, upstream="b")
    assert (by_others is there, backend(by_others) is backend(there)) == (False, True)
    assert (there.settings.warm, by_others.settings.warm) == (0, 1)


def uri_of(server: Server) -> NbdUri | None:
    assert server.recipe is not None
    return server.recipe.uri


async def test_a_reload_reaches_where_exports_were_switched_to() -> None:
    before = await made('uri = "nbd://h"')
    there = switched("nbd://g", before)
    same = await made('uri = "nbd://h"', before=before, switched=(there,))
    assert same.switched == {there: there}
    after = await made('uri = "nbd://h"\nwarm = 1', before=same, switched=(there,))
    now = after.switched[there]
    assert (now.settings.warm, uri_of(now), backend(now)) == (1, uri_of(there), backend(there))
    # What is elsewhere now, or is spoken to in another way, says nothing of it.
    for gone in (("uri = 'memory:1M'",), ("uri = 'nbds://h'",)):
        assert (await made(*gone, before=after, switched=(now,))).switched.get(now) is not None
    named = await made('uri = "nbd://h"', 'uri = "nbd://g"', before=after, switched=(now,))
    assert backend(named.switched[now]) is named.backends["b"]
    assert named.backends["b"].diallers == backend(now).diallers  # type: ignore[attr-defined]


async def test_what_only_a_switch_leads_to_is_not_gone() -> None:
    before = await made('uri = "nbd://h"', 'uri = "nbd://g"')
    there = switched("nbd://g", before)
    after = await made('uri = "nbd://h"', before=before, switched=(there,))
    assert before.gone(after) == []
    assert after.gone(await made('uri = "nbd://h"', before=after)) == [backend(there)]
