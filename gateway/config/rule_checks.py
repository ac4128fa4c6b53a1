"""What no value alone can tell of rules and policies (see `gateway.config.checks`, which asks this).

A rule that is wrong is not a rule that fails: it lets in whom it should stop, or stops everybody, and nobody
notices. So what can never be reached, and what asks for a proof that no listener asks for, is a mistake. Where
something is so misspelt that one cannot tell, nothing is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from pydantic import ValidationError

from gateway.config.base import did_you_mean
from gateway.config.data import (
    Data,
    Finding,
    Vocabulary,
    Where,
    array_of,
    has_tickets,
    nbd_uri,
    nbd_uris,
    tables_of,
    whereabouts,
)
from gateway.config.exports import exact_name
from gateway.config.lines import KeyPath
from gateway.config.words import in_plain_words
from gateway.uri import Transport


def policies(data: Data, vocabulary: Vocabulary) -> Iterator[Finding]:
    """What policies say of the options that they are given."""
    said = [export.get("name") for _, export in array_of(data, "export")]
    written = [name for name in said if isinstance(name, str)]
    # With patterns, which names there are is known to the servers alone.
    names = None if any(exact_name(name) is None for name in written) else written
    for header in ("rule", "export"):
        for path, table in array_of(data, header):
            uses, denied = table.get("policies"), table.get("deny") is True
            for i, use in enumerate(uses if isinstance(uses, list) else ()):
                if isinstance(use, dict) and isinstance(use.get("use"), str):
                    at = (*path, "policies", i)
                    yield from _options(at, use, vocabulary, names, denied=denied)


def _options(
    path: KeyPath, use: Data, vocabulary: Vocabulary, names: Sequence[str] | None, *, denied: bool
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
        made = policy.model_validate(options, by_alias=True, by_name=False)
    except ValidationError as wrong:
        for details in wrong.errors(include_url=False):
            inside, text = in_plain_words(details, unknown=unknown)
            yield (*path, *inside), text if inside else f"{name}: {text}"
    else:
        for text in () if names is None else vocabulary.mistakes(made, names):
            yield path, f"{name}: {text}"


_CHOOSING = frozenset({"asked", "exports"})
"""Hooks that are asked which export is meant, so that it is too late for them when that is known."""

_OF_USE_TO_DENIED = frozenset({"holds", "denied"})
"""Hooks of policies that have something to do where a rule denies."""


def rules(data: Data, where: Where) -> Iterator[Finding]:
    """Names that are there twice, and keys of rules that deny in rules that do not."""
    names: dict[str, KeyPath] = {}
    for path, rule in array_of(data, "rule"):
        name = rule.get("name")
        if isinstance(name, str) and (first := names.setdefault(name, path)) is not path:
            yield (*path, "name"), f'"{name}" is there already ({where((*first, "name"))})'
        deny = rule.get("deny") is True
        for key in ("hide", "disconnect"):
            if rule.get(key) is True and not deny:
                yield (*path, key), "this is for rules that deny: add deny = true"


def unreachable(data: Data, where: Where, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Rules that mean nobody whom one before them does not mean."""
    before: list[tuple[KeyPath, Data]] = []
    for path, rule in array_of(data, "rule"):
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
    if rule.get("tickets") not in (None, other.get("tickets")):
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


NO_TICKETS = "[tickets] says where they are kept"


def rules_and_exports(data: Data, where: Where) -> Iterator[Finding]:
    """Exports that rules cannot go by, and rules for exports that are not there."""
    several = array_of(data, "rule")
    if not several:
        return
    if not data.get("export") and not has_tickets(data):
        yield several[0][0], "with rules, [[export]] has to say which exports there are"
    for path, rule in several:
        if rule.get("tickets") is True and not has_tickets(data):
            yield (*path, "tickets"), f"there are no tickets: {NO_TICKETS}"
    yield from _patterns_that_hide_disks(data)
    yield from _disks_of_two_names(data, where)
    exports = [each.get("name") for _, each in array_of(data, "export")]
    names = [name for name in exports if isinstance(name, str)]
    known = [exact for name in names if (exact := exact_name(name)) is not None]
    unlisted = [name for name in names if exact_name(name) is None]
    for path, rule in several:
        # What tickets will be called nobody knows.
        may_be_tickets = has_tickets(data) and rule.get("tickets") is not False
        for pattern in (
            _patterns(rule) if "exports" in rule and names and not may_be_tickets else ()
        ):
            if isinstance(pattern, str) and not _may_mean_any(pattern, known, unlisted):
                hint = did_you_mean(pattern, names)
                yield (*path, "exports"), f'no [[export]] has a name like "{pattern}"{hint}'


def _may_mean_any(pattern: str, known: Sequence[str], unlisted: Sequence[str]) -> bool:
    """Say whether a rule's pattern means any of the names that are `known`, or may mean one that those let
    through that are patterns themselves; yes, if unsure.
    """
    if any(fnmatchcase(name, pattern) for name in known):
        return True
    exact = exact_name(pattern)
    return any(exact is None or fnmatchcase(exact, each) for each in unlisted)


def _patterns_that_hide_disks(data: Data) -> Iterator[Finding]:
    """Patterns by which a disk might be had under a name that a rule for it does not mean."""
    upstreams = _upstreams(data)
    for path, export in array_of(data, "export"):
        name, upstream = export.get("name"), _table(upstreams, export.get("upstream"))
        if not isinstance(name, str) or exact_name(name) is not None:
            continue
        if _name_there(export, upstream) is not None:
            yield (
                (*path, "name"),
                f'all names like "{name}" lead to one disk, and a rule for one of them says nothing of the'
                " others: with [[rule]], list the names that it is to have",
            )
        elif upstream.get("canonical-names") is not True:
            yield (
                (*path, "name"),
                f'"{name}" lets names through that no rule has seen (a server may know an export by several):'
                " with [[rule]], list every export by its name, or add canonical-names = true to its upstream"
                " if each name there is a disk of its own",
            )


def _disks_of_two_names(data: Data, where: Where) -> Iterator[Finding]:
    """Exports that have another name than on the server, by which a pattern lets clients ask for them."""
    upstreams = _upstreams(data)
    exports = [each for each in array_of(data, "export") if isinstance(each[1].get("name"), str)]
    if all(exact_name(export["name"]) is not None for _, export in exports):
        return
    for path, export in exports:
        upstream = _table(upstreams, export.get("upstream"))
        there = _name_there(export, upstream)
        if there is None or exact_name(export["name"]) in (None, there):
            continue
        asked = ((at, each) for at, each in exports if fnmatchcase(there, each["name"]))
        at, first = next(asked, (path, export))
        leads_to = _table(upstreams, first.get("upstream"))
        if exact_name(first["name"]) is None and (
            first.get("upstream") == export.get("upstream")
            or {*map(whereabouts, nbd_uris(leads_to))} & {*map(whereabouts, nbd_uris(upstream))}
        ):
            yield (
                (*path, "name"),
                f'clients may ask for this disk as "{there}", too, which "{first["name"]}" lets through'
                f" ({where((*at, 'name'))}), and a rule for one of the two says nothing of the other: give it"
                " the name that it has there",
            )


def _upstreams(data: Data) -> Mapping[object, Data]:
    """Give the tables of upstreams, by name."""
    return {path[1]: table for path, table in tables_of(data, "upstream")}


def _table(upstreams: Mapping[object, Data], name: object) -> Data:
    """Give the table of an upstream; an empty one, if there is none of what is written for its name."""
    return upstreams.get(name, {}) if isinstance(name, str) else {}


def _name_there(export: Data, upstream: Data) -> str | None:
    """Give the name that a server is asked for, whatever the client has asked for; None: that."""
    name = export.get("upstream-name")
    if isinstance(name, str):
        return name
    uri = nbd_uri(upstream)
    return uri.export if uri is not None and uri.export_named else None


def rules_and_listeners(data: Data, where: Where) -> Iterator[Finding]:
    """A rule on a proof that a listener does not ask for would never match, or let in whom it should stop."""
    listeners = array_of(data, "listen")
    if not listeners or any(nbd_uri(each) is None for _, each in listeners):
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
    for path, rule in array_of(data, "rule"):
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
    uri = nbd_uri(listen)
    return listen.get("tls") in ("allow", "require") or (uri is not None and uri.tls)


def _is_unix(listen: Data) -> bool:
    uri = nbd_uri(listen)
    return uri is not None and uri.transport is Transport.UNIX
