"""What no value alone can tell: names that must exist, keys that exclude each other.

These read the text's own data rather than a finished Config, so that they have their say even when
something else in the file is wrong: a user wants to see all mistakes at once. Whatever is not even of the
right shape is passed over here; the models have complained of it already.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gateway.config.base import did_you_mean
from gateway.config.lines import KeyPath
from gateway.config.models import exact_name
from gateway.config.words import in_plain_words
from gateway.uri import Legacy, NbdUri, Target, Transport, UriError, parse_upstream

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


def findings(data: Data, where: Where, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Every contradiction in the data of a configuration, and the key to blame for it. Without a vocabulary,
    names of others' are not looked at.
    """
    if vocabulary is not None:
        yield from _unknown(data, vocabulary)
        yield from _policies(data, vocabulary)
    yield from _unreachable(data, where, vocabulary)
    for check in (
        *(_needed, _listeners, _styles, _tls, _addresses, _control, _upstreams, _exports, _names),
        *(_rules, _rules_and_exports, _rules_and_listeners),
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
    for path, listen in _array(data, "listen"):
        uri = _nbd_uri(listen)
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
    for path, listen in _array(data, "listen"):
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
    for path, listen in _array(data, "listen"):
        uri = _nbd_uri(listen)
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
    for path, upstream in _named(data, "upstream"):
        yield from _upstream_over_tls(path, upstream)
    for path, export in _array(data, "export"):
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
    uri = _nbd_uri(upstream)
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
        blamed = "psk-user" if "psk-user" in upstream else "uri"
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
        names = [export.get("name") for _, export in _array(data, "export")]
        return not names or any(not isinstance(n, str) or fnmatchcase(name, n) for n in names)
    upstreams = _named(data, "upstream")
    if len(upstreams) != 1:
        return True
    uri = _nbd_uri(upstreams[0][1])
    return uri is None or not uri.export_named or name in ("", uri.export)


def _addresses(data: Data, where: Where) -> Iterator[Finding]:
    taken: dict[tuple[object, ...], KeyPath] = {}
    for path, listen in _array(data, "listen"):
        uri = _nbd_uri(listen)
        if uri is None or uri.port == 0:  # port 0 is another port each time
            continue
        first = taken.setdefault(_address(uri), path)
        if first is not path:
            yield (*path, "uri"), f"{uri} is listened on already ({where((*first, 'uri'))})"
    for path, upstream in _named(data, "upstream"):
        uri = _nbd_uri(upstream)
        if uri is not None and (listen_path := taken.get(_address(uri))):
            there = where((*listen_path, "uri"))
            yield (
                (*path, "uri"),
                f"the gateway itself listens there ({there}) and would call itself",
            )


def _control(data: Data, where: Where) -> Iterator[Finding]:
    control = data.get("control")
    path = control.get("socket") if isinstance(control, dict) else None
    if not isinstance(path, str):
        return
    for at, table in (*_array(data, "listen"), *_named(data, "upstream")):
        uri = _nbd_uri(table)
        if uri is not None and uri.socket_path == path:
            there = where((*at, "uri"))
            yield ("control", "socket"), f"NBD is spoken there ({there}): this needs another path"


def _upstreams(data: Data, where: Where) -> Iterator[Finding]:
    for path, upstream in _named(data, "upstream"):
        if "uri" in upstream and "command" in upstream:
            yield (*path, "command"), 'an upstream has either "uri" or "command", not both'
        elif "uri" not in upstream and "command" not in upstream:
            yield path, 'an upstream needs "uri" or "command"'
        target = "a command" if "command" in upstream else _target(upstream)
        if target is not None:
            yield from _keys_of_tcp(path, upstream, target)


def _unknown(data: Data, vocabulary: Vocabulary) -> Iterator[Finding]:
    for path, upstream in _named(data, "upstream"):
        target = _target(upstream)
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


def _policies(data: Data, vocabulary: Vocabulary) -> Iterator[Finding]:
    """What policies say of the options that they are given."""
    for header in ("rule", "export"):
        for path, table in _array(data, header):
            uses, denied = table.get("policies"), table.get("deny") is True
            for i, use in enumerate(uses if isinstance(uses, list) else ()):
                if isinstance(use, dict) and isinstance(use.get("use"), str):
                    yield from _options((*path, "policies", i), use, vocabulary, denied=denied)


def _options(
    path: KeyPath, use: Data, vocabulary: Vocabulary, *, denied: bool
) -> Iterator[Finding]:
    name = use["use"]
    try:
        policy = vocabulary.policy(name)
    except LookupError as error:
        yield (*path, "use"), str(error.args[0])
        return
    if path[0] == "export" and _CHOOSING & {*vocabulary.hooks(policy)}:
        yield (*path, "use"), f"{name} chooses among exports, so it belongs into a [[rule]]"
    if denied and not _OF_USE_TO_DENIED & {*vocabulary.hooks(policy)}:
        yield (*path, "use"), f"who is denied has no use for {name}; leave it out"
    known = [field.alias or key for key, field in policy.model_fields.items()]

    def unknown(where: KeyPath) -> str:
        key = str(where[-1])
        hint = did_you_mean(key.lower().replace("_", "-"), [*known, "mode"])
        may_be = f"; it has {', '.join(known)}" if known else "; it has no options"
        return f"unknown option of {name}{hint or may_be}"

    try:
        options = {key: use[key] for key in use if key not in ("use", "mode")}
        policy.model_validate(options, by_alias=True, by_name=False)
    except ValidationError as wrong:
        for details in wrong.errors(include_url=False):
            inside, text = in_plain_words(details, unknown=unknown)
            yield (*path, *inside), text if inside else f"{name}: {text}"


_CHOOSING = frozenset({"asked", "exports"})
"""Hooks that are asked which export is meant, so that it is too late for them when that is known."""

_OF_USE_TO_DENIED = frozenset({"holds", "denied"})
"""Hooks of policies that have something to do where a rule denies."""


def _rules(data: Data, where: Where) -> Iterator[Finding]:
    names: dict[str, KeyPath] = {}
    for path, rule in _array(data, "rule"):
        name = rule.get("name")
        if isinstance(name, str) and (first := names.setdefault(name, path)) is not path:
            yield (*path, "name"), f'"{name}" is there already ({where((*first, "name"))})'
        deny = rule.get("deny") is True
        for key in ("hide", "disconnect"):
            if rule.get(key) is True and not deny:
                yield (*path, key), "this is for rules that deny: add deny = true"


def _unreachable(data: Data, where: Where, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Rules that mean nobody whom one before them does not mean."""
    before: list[tuple[KeyPath, Data]] = []
    for path, rule in _array(data, "rule"):
        first = next((at for at, each in before if _covers(each, rule)), None)
        if first is not None:
            text = f"another ({where(first)}) means whatever it does, and stands first"
            yield path, f"this rule is never reached: {text}"
        elif _always_decides(rule, vocabulary):
            before.append((path, rule))


def _covers(rule: Data, other: Data) -> bool:
    """Say whether a rule means all clients and exports that another one means; no, if unsure."""
    everybody: Data = {}
    if rule.get("who", everybody) not in (everybody, other.get("who", everybody)):
        return False
    patterns, others = _patterns(rule), _patterns(other)
    return "*" in patterns or (bool(others) and all(each in patterns for each in others))


def _patterns(rule: Data) -> Sequence[object]:
    """Give `exports` of a rule; nothing if it is of the wrong shape."""
    patterns = rule.get("exports", "*")
    if isinstance(patterns, str):
        return [patterns]
    return patterns if isinstance(patterns, list) else []


def _always_decides(rule: Data, vocabulary: Vocabulary | None) -> bool:
    """Say whether a rule decides about all whom it means, at any time; no, if unsure."""
    if rule.get("deny") is True and rule.get("mode") == "observe":
        return False
    uses = rule.get("policies", [])
    if not isinstance(uses, list):
        return False
    return all(isinstance(use, dict) and not _is_timed(use.get("use"), vocabulary) for use in uses)


def _is_timed(name: object, vocabulary: Vocabulary | None) -> bool:
    """Say whether a policy may let its rule not hold; yes, if unsure."""
    if vocabulary is None or not isinstance(name, str):
        return True
    try:
        return "holds" in vocabulary.hooks(vocabulary.policy(name))
    except LookupError:
        return True


def _rules_and_exports(data: Data, where: Where) -> Iterator[Finding]:
    rules = _array(data, "rule")
    if not rules:
        return
    if not data.get("export"):
        yield rules[0][0], "with rules, [[export]] has to say which exports there are"
    known: list[str] = []
    for path, export in _array(data, "export"):
        name = export.get("name")
        if not isinstance(name, str):
            continue
        exact = exact_name(name)
        known.append(name if exact is None else exact)
        if exact is None:
            yield (
                (*path, "name"),
                f'"{name}" lets names through that no rule has seen (a server may know an export by several):'
                " with [[rule]], every export is listed by its name",
            )
    for path, rule in rules:
        for pattern in _patterns(rule) if "exports" in rule and known else ():
            if isinstance(pattern, str) and not any(fnmatchcase(n, pattern) for n in known):
                hint = did_you_mean(pattern, known)
                yield (*path, "exports"), f'no [[export]] has a name like "{pattern}"{hint}'


def _rules_and_listeners(data: Data, where: Where) -> Iterator[Finding]:
    """A rule on a proof that a listener does not ask for would never match, or let in whom it should stop."""
    listeners = _array(data, "listen")
    if not listeners or any(_nbd_uri(each) is None for _, each in listeners):
        return  # whatever is misspelt may have been meant for it
    over_tls = [(path, each) for path, each in listeners if _has_tls(each)]
    lacking = {
        "certificate": not any("certificates" in each for _, each in over_tls)
        and "no listener has certificates, so no client can show one",
        "psk-user": not any("psk" in each for _, each in over_tls)
        and "no listener has psk, so no client can show a key",
        "unix-user": not any(_is_unix(each) for _, each in listeners)
        and "no listener is a Unix socket, so no client has a Unix user",
        "tls": not over_tls and "no listener has TLS, so no client comes over it",
    }
    believing = [path for path, each in over_tls if each.get("verify-client") is False]
    for path, rule in _array(data, "rule"):
        who = rule.get("who")
        if not isinstance(who, dict):
            continue
        for key, text in lacking.items():
            if text and who.get(key, False) is not False:
                yield (*path, "who", key), text
        if "certificate" in who and believing:
            there = where((*path, "who", "certificate"))
            text = f"a rule ({there}) goes by clients' certificates, so they have to be verified"
            yield from (((*at, "verify-client"), text) for at in believing)
            believing = []  # once is enough


def _has_tls(listen: Data) -> bool:
    uri = _nbd_uri(listen)
    return listen.get("tls") in ("allow", "require") or (uri is not None and uri.tls)


def _is_unix(listen: Data) -> bool:
    uri = _nbd_uri(listen)
    return uri is not None and uri.transport is Transport.UNIX


def _instead(word: str, known: list[str]) -> str:
    return did_you_mean(word, known) or f"; known are {', '.join(known)}"


def _exports(data: Data, where: Where) -> Iterator[Finding]:
    upstreams = dict(data["upstream"]) if isinstance(data.get("upstream"), dict) else {}
    exports = _array(data, "export")
    if not data.get("export") and len(upstreams) > 1:
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
        uri = _nbd_uri(upstreams[name]) if isinstance(upstreams[name], dict) else None
        if uri is not None and uri.export_named and "upstream-name" in export:
            there = where(("upstream", name, "uri"))
            yield (
                (*path, "upstream-name"),
                f'the upstream\'s URI names the export "{uri.export}" already ({there}); '
                "leave one of the two out",
            )


def _names(data: Data, where: Where) -> Iterator[Finding]:
    seen: dict[str, KeyPath] = {}
    patterns: list[str] = []  # apart, for they are few where exact names are thousands
    for path, export in _array(data, "export"):
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


def _array(data: Data, key: str) -> list[tuple[KeyPath, Data]]:
    tables = data.get(key)
    if not isinstance(tables, list):
        return []
    return [((key, i), table) for i, table in enumerate(tables) if isinstance(table, dict)]


def _named(data: Data, key: str) -> list[tuple[KeyPath, Data]]:
    tables = data.get(key)
    if not isinstance(tables, dict):
        return []
    return [((key, name), table) for name, table in tables.items() if isinstance(table, dict)]


def _nbd_uri(table: Data) -> NbdUri | None:
    target = _target(table)
    return target if isinstance(target, NbdUri) else None


def _target(table: Data) -> Target | None:
    try:
        return parse_upstream(table["uri"]) if isinstance(table.get("uri"), str) else None
    except UriError:
        return None


def _address(uri: NbdUri) -> tuple[object, ...]:
    # [::] is listened on for IPv4 as well.
    host = {"localhost": "127.0.0.1", "0.0.0.0": "::"}.get(uri.host or "", uri.host)
    return (uri.transport, host, uri.port, uri.socket_path, uri.cid)
