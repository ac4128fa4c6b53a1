"""Reads what is said of a *ticket*, an export that is made at run time: whether it makes one, and whether that
fits a configuration.

Nobody writes tickets into gateway.toml; `[tickets]` says where those are kept that `nbd-gateway export add`
makes. Until when one is in force is no part of it: that is renewed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from gateway.config.base import did_you_mean
from gateway.config.data import Vocabulary
from gateway.config.exports import NeverTicket, Ticket
from gateway.config.lines import KeyPath
from gateway.config.models import Config
from gateway.config.rule_checks import policies
from gateway.config.words import in_plain_words


def ticket_of(data: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> Ticket:
    """Read a ticket, with the keys of `[[export]]` and its own. Without a vocabulary, options of policies are
    not looked at. Raises `NeverTicket`.
    """
    problems: list[str] = []
    ticket: Ticket | None = None
    try:
        ticket = Ticket.model_validate(data)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            path, words = in_plain_words(details, unknown=_unknown)
            problems.append(_placed(path, words))
    if vocabulary is not None:
        said = {"export": [{key: data[key] for key in ("name", "policies") if key in data}]}
        problems += [_placed(path[2:], words) for path, words in policies(said, vocabulary)]
    if ticket is None or problems:
        raise NeverTicket(*problems)
    return ticket


def _placed(path: KeyPath, words: str) -> str:
    key = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path)
    return f"{key.removeprefix('.')}: {words}" if key else words


def _unknown(path: KeyPath) -> str:
    known = [field.alias or name for name, field in Ticket.model_fields.items()]
    hint = did_you_mean(str(path[-1]), known) if len(path) == 1 else ""
    return f"unknown key{hint}" if hint or len(path) > 1 else f"unknown key; {', '.join(known)}"


def misfits(config: Config, ticket: Ticket) -> Iterator[str]:
    """Say why a ticket cannot be in force beside a configuration: what is said of it leads nowhere, or for
    nobody.
    """
    upstream = config.upstream.get(ticket.upstream)
    if upstream is None:
        yield f"there is no [upstream.{ticket.upstream}]{did_you_mean(ticket.upstream, [*config.upstream])}"
    elif upstream.export is not None and ticket.upstream_name is not None:
        yield f'the URI of upstream {ticket.upstream} names the export "{upstream.export}" already'
    if ticket.name in config.exact_names:
        yield f'[[export]] has the name "{ticket.name}"'
    yield from _unprovable(config, ticket)


def _unprovable(config: Config, ticket: Ticket) -> Iterator[str]:
    """What no listener of a configuration asks for, so that no client can ever show it."""
    over_tls = [each for each in config.listen if each.tls_mode != "off"]
    certified = [each for each in over_tls if each.certificates is not None]
    who = ticket.who
    if not over_tls and (who.tls or ticket.tls == "require"):
        yield "no listener has TLS, so no client comes over it"
    if who.certificate is not None and not certified:
        yield "who.certificate: no listener has certificates, so no client can show one"
    if who.certificate is not None and any(each.verify_client is False for each in certified):
        yield "who.certificate: a listener has verify-client = false, and takes any certificate"
    if who.psk_user is not None and not any(each.psk is not None for each in over_tls):
        yield "who.psk-user: no listener has psk, so no client can show a key"
    if who.unix_user is not None and not any(each.uri.socket_path for each in config.listen):
        yield "who.unix-user: no listener is a Unix socket, so no client has a Unix user"
