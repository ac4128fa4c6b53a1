"""What checks go by: the data of a configuration's text, of which nothing need have the right shape, and names
that other packages define.
"""

import os.path
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from gateway.config.admin import DEFAULT_URIS, AdminUri, parse_admin_uri
from gateway.config.lines import KeyPath
from gateway.uri import NbdUri, Target, UriError, parse_upstream

if TYPE_CHECKING:
    from pydantic import BaseModel

Finding = tuple[KeyPath, str]
Data = Mapping[str, Any]
Where = Callable[[KeyPath], str]
"""How to speak of another place of the same file: "line 12"."""


@dataclass(frozen=True)
class Vocabulary:
    """Names that others define, each kind asked for only where one is used: that may take an import."""

    quirks: Callable[[], Iterable[str]]
    personalities: Callable[[], Iterable[str]]
    """What `legacy:NAME` may name."""
    policy: "Callable[[str], type[BaseModel]]"
    """Gives what `use` names, whose fields are its options. Raises LookupError, with a text for people."""
    hooks: "Callable[[type[BaseModel]], Collection[str]]"
    """Names of the hooks that such a policy has."""
    mistakes: "Callable[[BaseModel, Collection[str]], Iterable[str]]"
    """Says what is wrong with a policy where the exports have these names."""
    remembers: "Callable[[BaseModel], str]" = lambda _policy: "session"
    """Says of which sessions a policy knows something together: "session", "export" or "place"."""


def array_of(data: Data, key: str) -> list[tuple[KeyPath, Data]]:
    """Give the tables of `[[key]]`, and where they stand."""
    tables = data.get(key)
    if not isinstance(tables, list):
        return []
    return [((key, i), table) for i, table in enumerate(tables) if isinstance(table, dict)]


def tables_of(data: Data, key: str) -> list[tuple[KeyPath, Data]]:
    """Give the tables of `[key.NAME]`, and where they stand."""
    tables = data.get(key)
    if not isinstance(tables, dict):
        return []
    return [((key, name), table) for name, table in tables.items() if isinstance(table, dict)]


def has_tickets(data: Data) -> bool:
    """Say whether exports can be made at run time."""
    tickets = data.get("tickets")
    return isinstance(tickets, dict) and ("directory" in tickets or tickets.get("etcd") is True)


def nbd_uri(table: Data) -> NbdUri | None:
    """Give the `uri` of a table if it is one of NBD, or the first of its `uris`: they name the same export."""
    return next(iter(nbd_uris(table)), None)


def nbd_uris(table: Data) -> list[NbdUri]:
    """Give all URIs of NBD that a table has."""
    uris = table.get("uris")
    targets = [target_of(table), *(map(_parsed, uris) if isinstance(uris, list) else ())]
    return [target for target in targets if isinstance(target, NbdUri)]


def admin_uris(admin: Data) -> list[AdminUri]:
    """Give the addresses of `[admin]`, as far as they are some."""
    written = admin.get("uri")
    if written is None:
        return list(DEFAULT_URIS)
    found = []
    for each in written if isinstance(written, list) else [written]:
        with suppress(ValueError):
            found.append(parse_admin_uri(each))
    return found


def address(uri: NbdUri) -> tuple[object, ...]:
    """Give where a URI leads, so that two can be compared."""
    # [::] is listened on for IPv4 as well.
    host = {"localhost": "127.0.0.1", "0.0.0.0": "::"}.get(uri.host or "", uri.host)
    return (uri.transport, host, uri.port, uri.socket_path, uri.cid)


def whereabouts(uri: NbdUri) -> tuple[object, ...]:
    """Give the same however the place is written: this machine's own addresses, those of IPv4 in IPv6, paths.
    Names of hosts are not looked up.
    """
    transport, host, port, path, cid = address(uri)
    with suppress(ValueError):  # a name
        found = ip_address(str(host))
        found = getattr(found, "ipv4_mapped", None) or found
        host = "127.0.0.1" if found.is_loopback else str(found)
    return (transport, host, port, path and os.path.normpath(str(path)), cid)


def target_of(table: Data) -> Target | None:
    """Give what the `uri` of a table means; None if there is none, or it means nothing."""
    return _parsed(table.get("uri"))


def _parsed(value: object) -> Target | None:
    try:
        return parse_upstream(value) if isinstance(value, str) else None
    except UriError:
        return None
