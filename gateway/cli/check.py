"""nbd-gateway check: what is wrong with a configuration, or what it would serve."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gateway.plural import plural

if TYPE_CHECKING:
    from gateway.config import Config, Export, Listen, Problem, Rule, Upstream, Use
    from gateway.config.data import Finding


def check(
    path: Path = Path("gateway.toml"),
    /,
    *,
    offline: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Say what is wrong with a configuration file, and what "serve" will need and is not there, as
    file:line: key: message. If that is nothing, say what it would serve.

    Nothing is connected to. What is needed is looked for on this machine and as this user, so be the one that
    will serve: images, programs, certificates and keys, the places and owners of sockets, the directories of
    audit files.

    :param path: The file to check; "-" is standard input. Default: gateway.toml.
    :param offline: Look at the file alone, and open nothing else: for another machine, and for CI.
    :param as_json: Print one JSON object, for programs.
    """
    from gateway.config import ConfigError

    lines: list[str] = []
    problems: Sequence[Problem] = ()
    try:
        config = _checked(path, offline=offline)
        lines = [*summary(config), *(() if offline else _warnings(config))]
    except ConfigError as error:
        problems = error.problems
        if not as_json:
            # Without our name before it: editors jump to file:line.
            print(error, file=sys.stderr)
    if as_json:
        import json
        from dataclasses import asdict

        said = {
            "file": str(path),
            "ok": not problems,
            "offline": offline,
            "problems": [asdict(problem) for problem in problems],
            "serves": lines,
        }
        print(json.dumps(said, indent=2))
    elif not problems:
        from gateway.wire.handshake import printable  # a name must not command the terminal

        print(printable(f"{path}: ok"))
        for line in lines:
            print(printable(f"  {line}"))
    return 1 if problems else 0


def _checked(path: Path, *, offline: bool) -> Config:
    """Give the configuration of a file. Raises `ConfigError`."""
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError, checked, read

    document = read(path)
    config = checked(lambda: document, document.source, vocabulary())
    if offline:
        return config
    from gateway.inspect.needs import lacking

    found = [
        document.problem(at, message) for at, message in (*lacking(config), *_of_admin(config))
    ]
    if found:
        raise ConfigError(sorted(found, key=lambda problem: (problem.file, problem.line or 0)))
    return config


def _of_admin(config: Config) -> Iterator[Finding]:
    """Say what `[admin]` lacks. Nothing of it is loaded where there is none."""
    if config.admin is not None:
        from gateway.web.needs import lacking

        yield from lacking(config.admin)


def _warnings(config: Config) -> Iterator[str]:
    """Say what serves now, and may not for long; and what was made at run time."""
    from gateway.inspect.needs import ending
    from gateway.inspect.tickets import said_of

    yield from said_of(config)
    for text in ending(config):
        yield f"warning: {text}"


def summary(config: Config) -> Iterator[str]:
    """Say what a configuration would serve, in lines for people."""
    for listen in config.listen:
        yield _listens(listen)
    for rule in config.exports:
        yield _serves(rule, config.upstream[rule.upstream])
    for number, access in enumerate(config.rule, start=1):
        yield _lets(number, access)
    for export in config.export if config.rule else ():
        name = export.exact_name
        if name is None:
            continue  # a pattern, of which a rule may mean a part
        if not any(config.means(access, name) for access in config.rule if not access.deny):
            yield f"{_export(name)} is for nobody: no rule lets anybody have it"
    used = {rule.upstream for rule in config.exports}
    for name in config.upstream:
        if name not in used:
            yield f"upstream {name} is not used: no [[export]] leads there"
    if config.control.socket is not None:
        yield f"nbd-gateway reload finds it at {config.control.socket}"
    if config.tickets.are_kept:
        where = config.tickets.directory or "the fleet's etcd"
        yield f"nbd-gateway export add makes exports, which are kept in {where}"
    if config.fleet is not None:
        yield (
            f"is {config.fleet.name} of a fleet, by etcd at {', '.join(config.fleet.etcd)}; others reach it at"
            f" {config.fleet.address}"
        )
    if config.control.reload_on_change:
        yield "takes this file up whenever it has changed"


def _lets(number: int, rule: Rule) -> str:
    label = f"rule {number}" if rule.name is None else f'rule {number} "{rule.name}"'
    said = ", ".join(sorted(rule.who.model_fields_set)).replace("_", "-")
    who = f"by {said}" if said else "everybody"
    kind = {None: "export", True: "ticket", False: "export of this file"}[rule.tickets]
    every = rule.exports == ("*",)
    exports = f"every {kind}" if every else ", ".join(rule.exports)
    exports += "" if every or rule.tickets is None else f" ({kind}s)"
    policies = _policies(rule.policies)
    what = "denied" if rule.deny else f"with {policies}" if policies else "as it is"
    observed = ", only observed" if rule.mode == "observe" else ""
    return f"{label}: {who}: {exports}: {what}{observed}"


def _policies(uses: Iterable[Use]) -> str:
    return ", ".join(f"{use.name}{' (observed)' * use.observed}" for use in uses)


def _listens(listen: Listen) -> str:
    mode = "" if listen.socket_mode is None else f", mode {listen.socket_mode:04o}"
    tls = {"off": "", "allow": ", TLS for those who want it", "require": ", TLS"}[listen.tls_mode]
    clients = f"at most {plural(listen.max_connections, 'client')}"
    return f"listens on {listen.uri}, {clients}{mode}{tls}{_greets(listen)}{_trusts(listen)}"


def _trusts(listen: Listen) -> str:
    """Say which load balancers a listener believes about who its client is."""
    if listen.proxy_protocol is None:
        return ""
    return f", PROXY headers from {' and '.join(map(str, listen.proxy_protocol))}"


def _greets(listen: Listen) -> str:
    """Say what is unusual about a listener's greeting."""
    if listen.style == "oldstyle":
        return f", oldstyle: {_export(listen.export)}"
    if "handshake_flags" not in listen.model_fields_set:
        return ""
    return f", offers {' and '.join(listen.handshake_flags) or 'no handshake flags'}"


def _export(name: str) -> str:
    return f'"{name}"' if name else "the default export"


def _serves(rule: Export, upstream: Upstream) -> str:
    name = {None: f'names like "{rule.name}"', "": "the default export"}.get(
        rule.exact_name, f'"{rule.exact_name}"'
    )
    if rule.name == "*":
        name = "every name"
    there = rule.upstream_name if rule.upstream_name is not None else upstream.export
    leads_to = "the same name" if there is None else _export(there)
    policies = f", with {_policies(rule.policies)}" if rule.policies else ""
    return f"{name}: {leads_to} of {rule.upstream} ({upstream}){policies}"
