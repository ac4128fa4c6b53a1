"""What no value alone can tell: names that must exist, keys that exclude each other.

These read the text's own data rather than a finished Config, so that they have their say even when
something else in the file is wrong: a user wants to see all mistakes at once. Whatever is not even of the
right shape is passed over here; the models have complained of it already.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from gateway.config.base import did_you_mean
from gateway.config.data import (
    Data,
    Finding,
    Vocabulary,
    Where,
    address,
    admin_uris,
    array_of,
    has_tickets,
    nbd_uri,
    nbd_uris,
    tables_of,
    target_of,
)
from gateway.config.exports import exact_name
from gateway.config.fleet_checks import fleet
from gateway.config.lines import KeyPath
from gateway.config.rule_checks import (
    policies,
    rules,
    rules_and_exports,
    rules_and_listeners,
    unreachable,
)
from gateway.config.upstream_checks import connections, survival
from gateway.config.worker_checks import workers
from gateway.uri import Legacy, NbdUri, Target, Transport


def findings(data: Data, where: Where, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Every contradiction in the data of a configuration, and the key to blame for it. Without a vocabulary,
    names of others' are not looked at.
    """
    if vocabulary is not None:
        yield from _unknown(data, vocabulary)
        yield from policies(data, vocabulary)
    yield from workers(data, vocabulary)
    yield from fleet(data, vocabulary)
    yield from unreachable(data, where, vocabulary)
    for check in (
        *(_needed, _listeners, _styles, _tls, _addresses, _control, _admin, _tickets, _upstreams),
        *(_exports, _names),
        *(connections, survival),
        *(rules, rules_and_exports, rules_and_listeners),
    ):
        yield from check(data, where)


NEEDED: Mapping[KeyPath, str] = {
    ("listen",): 'at least one is needed: [[listen]] with uri = "nbd://127.0.0.1:10810"',
    ("upstream",): 'at least one is needed: [upstream.NAME] with uri = "nbd://HOST"',
}


def _needed(data: Data, where: Where) -> Iterator[Finding]:
    # A key that is not there at all is the models' to miss.
    if data.get("listen") == []:
        yield ("listen",), NEEDED["listen",]
    if data.get("upstream") == {}:
        yield ("upstream",), NEEDED["upstream",]


def _listeners(data: Data, where: Where) -> Iterator[Finding]:
    for path, listen in array_of(data, "listen"):
        uri = nbd_uri(listen)
        if uri is None:
            continue
        if uri.transport is not Transport.UNIX:
            for key in ("socket-mode", "socket-owner"):
                if key in listen:
                    yield (*path, key), f"only a Unix socket has this, and {uri} is none"
        yield from _keys_of_tcp(path, listen, uri)
        yield from _proxies(path, listen, uri)


def _proxies(path: KeyPath, listen: Data, uri: NbdUri) -> Iterator[Finding]:
    proxies = listen.get("proxy-protocol")
    if not isinstance(proxies, list):
        return
    blamed = (*path, "proxy-protocol")
    if uri.transport is Transport.VSOCK:
        yield blamed, f"load balancers come over TCP or Unix sockets, not to {uri}"
    elif uri.transport is Transport.UNIX and any(proxy != "unix" for proxy in proxies):
        yield blamed, f'who comes to {uri} has no address: expected ["unix"] alone'
    elif uri.transport is Transport.TCP and "unix" in proxies:
        yield blamed, f'"unix" is for Unix sockets, and {uri} is none'


def _keys_of_tcp(path: KeyPath, table: Data, target: Target | str) -> Iterator[Finding]:
    if isinstance(target, NbdUri) and target.transport is Transport.TCP:
        return
    for key in ("keepalive-seconds", "user-timeout-seconds"):
        if key in table:
            yield (*path, key), f"only TCP has this, and {target} is none"


def _styles(data: Data, where: Where) -> Iterator[Finding]:
    for path, listen in array_of(data, "listen"):
        style = listen.get("style", "newstyle")
        if style == "newstyle" and "export" in listen:
            yield (
                (*path, "export"),
                "newstyle clients ask for an export by its name, and [[export]] has those; "
                'leave this out, or add style = "oldstyle"',
            )
        if style != "oldstyle":
            continue
        if "handshake-flags" in listen:
            yield (*path, "handshake-flags"), "an oldstyle greeting has none; leave this out"
        name = listen.get("export", "")
        if isinstance(name, str) and not _may_be_let_through(data, name):
            # Where no name is written, it is the style that asks for one.
            key = "export" if "export" in listen else "style"
            which = f'the export "{name}"' if name else "the default export"
            hint = "" if "export" in listen else ': add export = "NAME" for another one'
            yield (*path, key), f"oldstyle clients get {which}, but no rule lets it through{hint}"


def _tls(data: Data, where: Where) -> Iterator[Finding]:
    modes = []
    for path, listen in array_of(data, "listen"):
        uri = nbd_uri(listen)
        secure = uri is not None and uri.tls
        mode = listen.get("tls", "require" if secure else "off")
        modes.append(mode)
        blamed = (*path, "tls" if "tls" in listen else "uri")
        if secure and mode != "require":
            yield blamed, f'tls = "{mode}" contradicts {uri}, which is TLS from the beginning'
        if mode in ("allow", "require"):
            yield from _listener_over_tls(path, listen, blamed)
        else:
            for key in ("certificates", "psk", "verify-client"):
                if key in listen:
                    yield (*path, key), 'this is for TLS: add tls = "require", or "allow"'
    for path, upstream in tables_of(data, "upstream"):
        yield from _upstream_over_tls(path, upstream)
    for path, export in array_of(data, "export"):
        if export.get("tls") == "require" and modes and set(modes) == {"off"}:
            yield (*path, "tls"), "no listener has TLS, so nobody could reach this export"


def _listener_over_tls(path: KeyPath, listen: Data, blamed: KeyPath) -> Iterator[Finding]:
    if "certificates" not in listen and "psk" not in listen:
        text = 'TLS needs certificates = "DIRECTORY", or psk = "FILE"'
        yield blamed, f"{text} (nbd-gateway pki init DIRECTORY makes some to try things out)"
    if "certificates" not in listen and "verify-client" in listen:
        yield (*path, "verify-client"), "clients' certificates are only looked at with certificates"
    if listen.get("style") == "oldstyle":
        yield blamed, "oldstyle clients have no TLS"
    flags = listen.get("handshake-flags")
    if isinstance(flags, list) and "FIXED_NEWSTYLE" not in flags:
        yield (*path, "handshake-flags"), "TLS begins with an option, which needs FIXED_NEWSTYLE"


def _upstream_over_tls(path: KeyPath, upstream: Data) -> Iterator[Finding]:
    uris: list[NbdUri] | list[None] = nbd_uris(upstream) or [None]
    yield from dict.fromkeys(
        finding for uri in uris for finding in _server_over_tls(path, upstream, uri)
    )


def _server_over_tls(path: KeyPath, upstream: Data, uri: NbdUri | None) -> Iterator[Finding]:
    said = {} if uri is None else uri.parameters
    for key, parameter in _SAID_TWICE.items():
        if key in upstream and (uri is None or not uri.tls):
            yield (*path, key), "this is for servers with an nbds: URI"
        elif key in upstream and parameter in said:
            yield (*path, key), f"the URI says {parameter} already; leave one of the two out"
    has = {key for key, parameter in _SAID_TWICE.items() if key in upstream or parameter in said}
    named = "psk-user" in has or (uri is not None and uri.username is not None)
    if {"certificates", "psk"} <= has:
        yield path, "a server is reached with certificates or with a pre-shared key, not with both"
    elif uri is not None and uri.tls and named and "psk" not in has:
        blamed = "psk-user" if "psk-user" in upstream else _uri_key(upstream)
        yield (*path, blamed), "a user is that of a pre-shared key: psk says in which file it is"


_SAID_TWICE = {
    "certificates": "tls-certificates",
    "psk": "tls-psk-file",
    "psk-user": "tls-username",
}
"""Keys of an upstream, and what its URI may say in their place."""


def _may_be_let_through(data: Data, name: str) -> bool:
    """Say whether an export name may lead anywhere; no, only if that is sure."""
    if data.get("export"):
        # What is no list of names is wrong for another reason, and may have been meant to match.
        names = [export.get("name") for _, export in array_of(data, "export")]
        return not names or any(not isinstance(n, str) or fnmatchcase(name, n) for n in names)
    upstreams = tables_of(data, "upstream")
    if len(upstreams) != 1 or has_tickets(data):
        return True
    uri = nbd_uri(upstreams[0][1])
    return uri is None or not uri.export_named or name in ("", uri.export)


def _addresses(data: Data, where: Where) -> Iterator[Finding]:
    taken: dict[tuple[object, ...], KeyPath] = {}
    named: dict[object, KeyPath] = {}
    for path, listen in array_of(data, "listen"):
        name = listen.get("descriptor")
        if isinstance(name, str) and (first := named.setdefault(name, path)) is not path:
            there = where((*first, "descriptor"))
            yield (*path, "descriptor"), f'"{name}" is taken by another listener already ({there})'
        uri = nbd_uri(listen)
        if uri is None or uri.port == 0:  # port 0 is another port each time
            continue
        first = taken.setdefault(address(uri), path)
        if first is not path:
            yield (*path, "uri"), f"{uri} is listened on already ({where((*first, 'uri'))})"
    for path, upstream in tables_of(data, "upstream"):
        for uri in nbd_uris(upstream):
            if listen_path := taken.get(address(uri)):
                there = where((*listen_path, "uri"))
                yield (
                    (*path, _uri_key(upstream)),
                    f"the gateway itself listens there ({there}) and would call itself",
                )


def _control(data: Data, where: Where) -> Iterator[Finding]:
    control = data.get("control")
    path = control.get("socket") if isinstance(control, dict) else None
    if not isinstance(path, str):
        return
    for at, table in (*array_of(data, "listen"), *tables_of(data, "upstream")):
        if any(uri.socket_path == path for uri in nbd_uris(table)):
            there = where((*at, _uri_key(table)))
            yield ("control", "socket"), f"NBD is spoken there ({there}): this needs another path"


def _admin(data: Data, where: Where) -> Iterator[Finding]:
    admin = data.get("admin")
    if not isinstance(admin, dict):
        return
    uris = admin_uris(admin)
    verified = "certificates" in admin and admin.get("verify-client") is not False
    for uri in uris:
        if uri.secure and "certificates" not in admin:
            yield ("admin", "uri"), f'{uri} needs certificates = "DIRECTORY"'
        if not uri.is_private and "tokens" not in admin and not (uri.secure and verified):
            yield (
                ("admin", "uri"),
                f"who reaches {uri} could be anybody: it needs tokens, or https with clients' certificates",
            )
    if uris and not any(uri.secure for uri in uris):
        for key in ("certificates", "verify-client"):
            if key in admin:
                yield ("admin", key), "this is for an address with https:"
    if uris and "socket-mode" in admin and all(uri.path is None for uri in uris):
        yield ("admin", "socket-mode"), "only a Unix socket has this: http+unix:///PATH"
    taken = {
        uri.socket_path: where((*at, _uri_key(table)))
        for at, table in (*array_of(data, "listen"), *tables_of(data, "upstream"))
        for uri in nbd_uris(table)
    }
    control = data.get("control")
    if isinstance(control, dict) and isinstance(control.get("socket"), str):
        taken[control["socket"]] = where(("control", "socket"))
    for uri in uris:
        if uri.path is not None and (there := taken.get(str(uri.path))):
            yield ("admin", "uri"), f"{uri.path} is taken ({there}): this needs another path"


def _tickets(data: Data, where: Where) -> Iterator[Finding]:
    control = data.get("control")
    spoken_to = "admin" in data or (isinstance(control, dict) and "socket" in control)
    if has_tickets(data) and not spoken_to:
        text = "tickets are made over the control socket, or over HTTP: [control] or [admin] has it"
        yield ("tickets", "directory" if "directory" in data["tickets"] else "etcd"), text


def _upstreams(data: Data, where: Where) -> Iterator[Finding]:
    for path, upstream in tables_of(data, "upstream"):
        if path[-1] == "":
            yield path, "an upstream has a name, which the log knows it by: [upstream.NAME]"
        ways = [key for key in ("uri", "uris", "command") if key in upstream]
        if len(ways) > 1:
            several = " or ".join(f'"{way}"' for way in ways)
            yield (*path, ways[-1]), f"an upstream has either {several}, not both"
        elif not ways:
            yield path, 'an upstream needs "uri", "uris" or "command"'
        uris = nbd_uris(upstream)
        tcp = next((uri for uri in uris if uri.transport is Transport.TCP), uris and uris[0])
        target = "a command" if "command" in upstream else tcp or target_of(upstream)
        if target is not None:
            yield from _keys_of_tcp(path, upstream, target)
        if "same-storage" in upstream and not _is_dialled(upstream):
            yield (*path, "same-storage"), "this is for servers with an NBD URI"
        unseen = _is_dialled(upstream) and not upstream.get("health-check-seconds")
        if upstream.get("required") is True and unseen:
            text = "nobody would notice that it is down: add health-check-seconds = 10"
            yield (*path, "required"), text
        if upstream.get("health-check-seconds") and not _is_dialled(upstream):
            yield (*path, "health-check-seconds"), _no_health_check(upstream)


def _no_health_check(upstream: Data) -> str:
    if "command" in upstream:
        return (
            "a server that is started by command is there when it is needed, and one that ends with its last"
            " connection would be ended by this"
        )
    return (
        "an embedded server is there as long as the gateway is; this is for servers with an NBD URI"
    )


def _is_dialled(upstream: Data) -> bool:
    """Say whether a server is connected to at addresses; yes, if unsure."""
    target = target_of(upstream)
    return "command" not in upstream and (target is None or isinstance(target, NbdUri))


def _unknown(data: Data, vocabulary: Vocabulary) -> Iterator[Finding]:
    for path, upstream in tables_of(data, "upstream"):
        target = target_of(upstream)
        if isinstance(target, Legacy):
            known = sorted(vocabulary.personalities())
            if target.personality not in known:
                text = f'there is no server "{target.personality}" to imitate'
                yield (*path, "uri"), f"{text}{_instead(target.personality, known)}"
        quirks = upstream.get("quirks")
        if isinstance(quirks, list) and quirks:
            known = sorted(vocabulary.quirks())
            for i, quirk in enumerate(quirks):
                if isinstance(quirk, str) and quirk not in known:
                    text = f'there is no quirk "{quirk}"'
                    yield (*path, "quirks", i), f"{text}{_instead(quirk, known)}"


def _instead(word: str, known: list[str]) -> str:
    return did_you_mean(word, known) or f"; known are {', '.join(known)}"


def _exports(data: Data, where: Where) -> Iterator[Finding]:
    upstreams = dict(data["upstream"]) if isinstance(data.get("upstream"), dict) else {}
    exports = array_of(data, "export")
    if not data.get("export") and len(upstreams) > 1 and not has_tickets(data):
        names = ", ".join(f'"{name}"' for name in upstreams)
        yield (
            ("upstream", list(upstreams)[1]),
            f"with more than one upstream ({names}), [[export]] has to say which names lead where",
        )
    for path, export in exports:
        name = export.get("upstream")
        if not isinstance(name, str):
            continue
        if name not in upstreams:
            yield (
                (*path, "upstream"),
                f"there is no [upstream.{name}]{did_you_mean(name, list(upstreams))}",
            )
            continue
        uri = nbd_uri(upstreams[name]) if isinstance(upstreams[name], dict) else None
        if uri is not None and uri.export_named and "upstream-name" in export:
            there = where(("upstream", name, _uri_key(upstreams[name])))
            yield (
                (*path, "upstream-name"),
                f'the upstream\'s URI names the export "{uri.export}" already ({there}); '
                "leave one of the two out",
            )


def _names(data: Data, where: Where) -> Iterator[Finding]:
    seen: dict[str, KeyPath] = {}
    patterns: list[str] = []  # apart, for they are few where exact names are thousands
    for path, export in array_of(data, "export"):
        name = export.get("name")
        if not isinstance(name, str):
            continue
        first = seen.setdefault(name, (*path, "name"))
        if first[:-1] != path:
            yield (
                (*path, "name"),
                f'"{name}" is there already ({where(first)}); the first match wins',
            )
            continue
        exact = exact_name(name)
        hides = next((pattern for pattern in patterns if _hides(pattern, exact)), None)
        if exact is None:
            patterns.append(name)
        if hides is not None:
            yield (
                (*path, "name"),
                f'"{name}" is never reached: "{hides}" matches it too ({where(seen[hides])}), '
                "and stands first",
            )


def _hides(pattern: str, exact: str | None) -> bool:
    """Say whether a pattern matches an exact name, or (None) whatever another one does; no, if unsure."""
    return pattern == "*" if exact is None else fnmatchcase(exact, pattern)


def _uri_key(table: Data) -> str:
    return "uri" if "uri" in table else "uris"
