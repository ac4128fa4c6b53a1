"""nbd-gateway export: exports that are made while a gateway runs, until a time or for one use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from gateway.cli import UsageError

export = App(name="export", help="Make exports of a running gateway, until a time or for one use.")

Until = Annotated[str | None, Parameter(name="--until")]
Lasts = Annotated[float | None, Parameter(name="--for")]

OF_CERTIFICATES = ("cn", "issuer-cn", "san-dns", "san-uri", "fingerprint")
OTHERS = ("network", "psk-user", "unix-user", "tls")


@export.command
def add(
    name: str | None = None,
    /,
    *,
    upstream: str,
    upstream_name: str | None = None,
    description: str | None = None,
    read_only: bool = False,
    who: tuple[str, ...] = (),
    policy: tuple[str, ...] = (),
    lasts: Lasts = None,
    until: Until = None,
    once: bool = False,
    more: tuple[str, ...] = (),
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Make an export. It is there at once, survives restarts, and is over when it was said.

    For example:

      nbd-gateway export add --upstream disks --upstream-name vm-7 --read-only --for 3600 --once
      nbd-gateway export add restore-7 --upstream disks --who cn=backup --until 2026-12-24T18:00Z
      nbd-gateway export add vm-7 --upstream disks --policy '{ use = "limit", connections = 8 }'

    Prints the export's name. LIST does not show it to clients.

    :param name: The name that clients ask for. Default: one is made up that nobody guesses.
    :param upstream: The NAME of one [upstream.NAME].
    :param upstream_name: The name to ask the server for. Default: the export's.
    :param description: Text for people.
    :param read_only: Refuse whatever would change the disk.
    :param who: Whom it is for; may be given several times, and all kinds must hold: cn=, issuer-cn=, san-dns=,
        san-uri=, fingerprint=, network=, psk-user=, unix-user=, tls. Default: everybody whom the rules let in.
    :param policy: A policy as in policies = [ ... ] of [[export]]; may be given several times, the first
        nearest to the client.
    :param lasts: For how many seconds. Default: until it is removed.
    :param until: Until when: a time with its zone, such as 2026-12-24T18:00Z.
    :param once: For one use: it is over 10 seconds after the last connection of the first client that opens it.
    :param more: Another KEY=VALUE of [[export]], in TOML, such as unaligned="refuse".
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.asking import export_named

    said: dict[str, Any] = {"upstream": upstream}
    if name is not None:
        said["export"] = export_named(name)
    for key, value in (("upstream-name", upstream_name), ("description", description)):
        if value is not None:
            said[key] = value
    for key, is_so in (("read-only", read_only), ("once", once)):
        if is_so:
            said[key] = True
    if who:
        said["who"] = _who(who)
    if policy:
        said["policies"] = [_toml("--policy", f"x = {each}")["x"] for each in policy]
    for each in more:
        said |= _toml("--more", each)
    return _tell(config, socket, "export-add", {**said, **_time(lasts, until)})


@export.command
def renew(
    name: str,
    /,
    *,
    lasts: Lasts = None,
    until: Until = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Have an export be there until another time, sooner or later than was said.

    :param name: Its name.
    :param lasts: For how many seconds from now.
    :param until: Until when: a time with its zone, such as 2026-12-24T18:00Z.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    when = _time(lasts, until)
    if not when:
        raise UsageError("expected --for SECONDS or --until TIME")
    return _tell(config, socket, "export-renew", {"export": name, **when})


@export.command
def remove(
    name: str,
    /,
    *,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """End an export: nobody opens it any more, and its sessions end after what is under way.

    :param name: Its name.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.running import do

    return do(config, socket, "export-remove", {"export": name})


@export.command(name="list")
def list_(
    *,
    json: Annotated[bool, Parameter(name="--json")] = False,
    watch: float | None = None,
    config: Path = Path("gateway.toml"),
    socket: Path | None = None,
) -> int:
    """Show the exports that were made at run time.

    :param json: As JSON, one object a line (docs/tickets.md has the names).
    :param watch: Again and again, every so many seconds.
    :param config: The configuration, whose [control] says where the gateway listens. Default: gateway.toml.
    :param socket: The control socket itself.
    """
    from gateway.cli.showing import all_pages, show

    def look() -> dict[str, Any]:
        return {"tickets": all_pages(config, socket, "export-list", "export", {}, of="tickets")}

    return show(look, lambda shown: _table(shown["tickets"]), as_json=json, watch=watch)


def _table(tickets: Sequence[dict[str, Any]]) -> str:
    from gateway.cli.showing import table

    return table(
        ("EXPORT", "UPSTREAM", "UNTIL", "SESSIONS", ""),
        (
            (
                each["export"],
                each["upstream"],
                each["until"] or "removed",
                each["sessions"],
                _state(each),
            )
            for each in tickets
        ),
    )


def _state(each: dict[str, Any]) -> str:
    once = f"for one use: {each['used_by']}" if each["used_by"] else "for one use"
    words = ((each["once"], once), (each["why_not"], f"not in force: {each['why_not']}"))
    return ", ".join(text for is_so, text in words if is_so)


def _tell(config: Path, socket: Path | None, verb: str, arguments: dict[str, Any]) -> int:
    """Have a gateway do something with a ticket. On standard output there is its name alone, for scripts."""
    from gateway.cli import complain
    from gateway.cli.running import SEEN_TO, NoAnswer, ask_gateway, said
    from gateway.wire.handshake import printable

    try:
        answer = ask_gateway(config, socket, verb, arguments)
    except NoAnswer as error:
        complain(str(error))
        return 1
    if not answer.ok or answer.data is None:
        return said(answer)
    print(printable(answer.data["ticket"]["export"]), flush=True)
    for line in (*answer.done, *answer.problems):
        complain(line)
    return SEEN_TO if answer.problems else 0


def _time(lasts: float | None, until: str | None) -> dict[str, Any]:
    if lasts is not None and until is not None:
        raise UsageError("either --for or --until says how long, not both")
    if until is not None:
        return {"until": until}
    return {} if lasts is None else {"for": lasts}


def _who(claims: Sequence[str]) -> dict[str, Any]:
    """Give `who` as [[rule]] has it. Raises `UsageError`."""
    from gateway.config.base import did_you_mean

    who: dict[str, Any] = {}
    for claim in claims:
        key, _equals, value = claim.partition("=")
        known = (*OF_CERTIFICATES, *OTHERS)
        if key not in known:
            hint = did_you_mean(key, [*known]) or f"; known are {', '.join(known)}"
            raise UsageError(f'--who: expected KEY=VALUE, got "{claim}"{hint}')
        if key == "tls":
            if value not in ("", "true", "false"):
                raise UsageError(f'--who: expected tls, tls=true or tls=false, got "{claim}"')
            who["tls"] = value != "false"
        elif not value:
            raise UsageError(f'--who: expected {key}=VALUE, got "{claim}"')
        elif key in OF_CERTIFICATES:
            who.setdefault("certificate", {}).setdefault(key, []).append(value)
        else:
            who.setdefault(key, []).append(value)
    return who


def _toml(option: str, text: str) -> dict[str, Any]:
    """Read a line of TOML. Raises `UsageError`."""
    import json
    import tomllib

    try:
        found = tomllib.loads(text)
        json.dumps(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{option}: expected TOML, got {text.removeprefix('x = ')!r}: {error}"
        ) from None
    return found
