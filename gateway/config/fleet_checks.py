"""What a fleet cannot do, or not yet (docs/fleet.md): see `checks.py`, which asks this.

Gateways of a fleet share the homes of disks, and nothing that is counted or kept elsewhere. What would be
another thing in each of them is refused, with what to write instead.
"""

from collections.abc import Iterator

from gateway.config.base import Section
from gateway.config.data import (
    Data,
    Finding,
    Vocabulary,
    array_of,
    nbd_uris,
    tables_of,
    target_of,
)
from gateway.config.fleet import RECONNECT_WAITS, Fleet, late_writes, longest_wait
from gateway.config.upstream import Upstream
from gateway.config.worker_checks import counted
from gateway.uri import NbdUri


def fleet(data: Data, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Find what would not be true in a fleet."""
    table, tickets = data.get("fleet"), data.get("tickets")
    if not isinstance(table, dict):
        if isinstance(tickets, dict) and tickets.get("etcd") is True:
            yield ("tickets", "etcd"), "there is no [fleet], which says where etcd is"
        return
    if isinstance(tickets, dict) and "directory" in tickets:
        text = "all gateways of a fleet have the same tickets: write etcd = true in its place"
        yield ("tickets", "directory"), text
    control = data.get("control")
    if isinstance(control, dict) and control.get("reload-on-change") is True:
        text = "a gateway of a fleet does not reload yet: leave this out with [fleet]"
        yield ("control", "reload-on-change"), text
    if data.get("workers", 1) != 1:
        yield ("workers",), "a gateway of a fleet has one process yet: write workers = 1"
    for path, listen in array_of(data, "listen"):
        if listen.get("style") == "oldstyle":
            text = (
                "oldstyle clients are not led to another gateway yet: leave this out with [fleet]"
            )
            yield (*path, "style"), text
    for path, upstream in tables_of(data, "upstream"):
        target = target_of(upstream)
        if "command" in upstream or (target is not None and not isinstance(target, NbdUri)):
            key = "command" if "command" in upstream else "uri"
            text = "each gateway of a fleet would have a server of its own: run it apart, and name its address"
            yield (*path, key), text
        if upstream.get("warm"):
            text = "connections that are kept ready are not yet given to another gateway with their disks"
            yield (*path, "warm"), f"{text}: leave this out with [fleet]"
    yield from _of_etcd(table)
    yield from _survival(data, table)
    if vocabulary is not None:
        what = "each gateway of the fleet would count its own:"
        yield from counted(data, vocabulary, what, "are all at one gateway", together=False)


def _survival(data: Data, table: Data) -> Iterator[Finding]:
    """Find sessions that would end before another home begins. 0 means that they shall."""
    upstreams = dict(tables_of(data, "upstream"))
    places = {
        str(path[1]): (nbd_uris(each), _seconds(each, "late-write-seconds", Upstream))
        for path, each in upstreams.items()
    }
    lease = _seconds(table, "lease-seconds", Fleet)
    for path, each in upstreams.items():
        written = each.get("reconnect-seconds")
        if isinstance(written, bool) or not isinstance(written, int | float) or written <= 0:
            continue
        late = late_writes(places)[str(path[1])]
        longest = longest_wait(late, lease, fenced="fence" in table)
        least = RECONNECT_WAITS * longest
        if written < least:
            yield (
                (*path, "reconnect-seconds"),
                f"whoever asks for a disk of it may wait {longest:g} s for its home: expected twice that,"
                f" {least:g}, or more, got {written:g}; leave this out, or write 0 to have clients end with"
                " their home",
            )


def _seconds(table: Data, key: str, of: type[Section]) -> float:
    """Give what a table says of a time, or its default where it says nothing that could be meant."""
    written = table.get(key)
    if isinstance(written, int | float) and not isinstance(written, bool):
        return float(written)
    return float(of.model_fields[key.replace("-", "_")].default)


def _of_etcd(table: Data) -> Iterator[Finding]:
    members = table.get("etcd")
    members = [members] if isinstance(members, str) else members
    written = (
        [each for each in members if isinstance(each, str)] if isinstance(members, list) else []
    )
    secure = [each for each in written if each.startswith("https:")]
    if "etcd-certificates" in table and written and len(secure) < len(written):
        text = "this is for members with https:, and with http: everybody on the way may take disks"
        yield ("fleet", "etcd-certificates"), text
    if secure and "etcd-certificates" not in table:
        text = 'members with https: need etcd-certificates = "DIRECTORY", with ca-cert.pem'
        yield ("fleet", "etcd"), text
    if ("etcd-user" in table) != ("etcd-password-file" in table):
        has = "etcd-user" if "etcd-user" in table else "etcd-password-file"
        lacks = "etcd-password-file" if has == "etcd-user" else "etcd-user"
        yield ("fleet", has), f"this goes with {lacks}"
