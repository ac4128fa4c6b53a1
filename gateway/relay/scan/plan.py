"""What a session does with each command: decided once, when it begins.

FAST: the words (command flags and type) of requests that go upstream as they are, with a new cookie. All
others are looked at one by one: FLUSH and READ with a flag to strip, BLOCK_STATUS to shorten, WRITE_ZEROES to
split, and what is answered here.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.protocol.commands import RANGED, Rule, legal_commands
from gateway.protocol.export import Export, Offer
from gateway.quirks import Dialect
from gateway.wire import limits
from gateway.wire.constants import Cmd, CmdFlag


@dataclass(frozen=True, slots=True)
class Plan:
    """One session's terms, in the form that the scanners need."""

    offer: Offer
    link_structured: bool
    """The link speaks structured replies (the client's side says `offer.structured`)."""
    rules: dict[int, Rule]
    """Every legal word, with what goes upstream for it."""
    fast: dict[int, int]
    """The words that are FAST, with their longest length in bytes."""
    context_ids: dict[int, int | None]
    """The link's context ids -> the client's; None: the client did not select that one."""
    answer_cache: bool
    """CACHE is answered here."""


def plan(offer: Offer, export: Export, dialect: Dialect) -> Plan:
    """Decide what a session does, from what its client was promised and what its link is."""
    rules = legal_commands(offer)
    if not export.structured:
        # One simple reply cannot be a fragment: DF holds without being sent.
        rules = {word: _without(rule, CmdFlag.DF) for word, rule in rules.items()}
    client_ids = {context.name: context.id for context in offer.contexts}
    fast = {
        word: min(rule.longest, _LONGEST_FAST.get(rule.command, rule.longest))
        for word, rule in rules.items()
        if rule.word == word and rule.command in RANGED
    }
    if dialect.answer_cache:
        fast = {word: longest for word, longest in fast.items() if word & 0xFFFF != Cmd.CACHE}
    return Plan(
        offer,
        export.structured,
        rules,
        fast,
        {context.id: client_ids.get(context.name) for context in export.contexts},
        dialect.answer_cache,
    )


_LONGEST_FAST = {
    Cmd.WRITE_ZEROES: limits.WRITE_ZEROES_PIECE_BYTES,
    Cmd.BLOCK_STATUS: limits.BLOCK_STATUS_BYTES,
}


def _without(rule: Rule, flag: CmdFlag) -> Rule:
    return Rule(rule.command, rule.flags & ~flag, rule.longest)
