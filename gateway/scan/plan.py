"""What a session does with each command: decided once, when it begins.

FAST: both sides have the same framing, and the message goes on as it is, with a cookie (and, if need be,
command flags) of ours. REFRAMED: only the headers differ; they are made anew, the payload is sent on from
where it was received. TRANSLATED: the command becomes a job (see `translate`), because the upstream cannot
take it as it is. A request that is FAST or REFRAMED as a rule is a job as well when it is unaligned or too
long for the upstream.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from gateway.jobs.translate import Abilities
from gateway.protocol.commands import (
    FUA_MATTERS,
    RANGED,
    WRITE_CLASS,
    RefusedCommand,
    WordRule,
    legal_commands,
    refusal,
)
from gateway.protocol.export import Export, Offer, longest_payload
from gateway.protocol.table import ALL_COMMANDS, Ranges, Table
from gateway.quirks import Dialect
from gateway.wire import limits
from gateway.wire.constants import BASE_ALLOCATION, Cmd, CmdFlag
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, Framing

_FUA, _DF, _PAYLOAD_LEN = int(CmdFlag.FUA), int(CmdFlag.DF), int(CmdFlag.PAYLOAD_LEN)


class Handling(Enum):
    """How a command goes upstream."""

    FAST = "FAST"
    REFRAMED = "REFRAMED"
    TRANSLATED = "TRANSLATED"
    HERE = "HERE"
    """It is answered by the gateway."""
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class Way:
    """How one command goes, with the reason in words."""

    handling: Handling
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What would be refused if policies that are only observed were in force."""

    offer: Offer
    table: Table

    def refusal(self, word: int, offset: int, length: int) -> RefusedCommand | None:
        """Say why a request would be refused that is legal."""
        return refused_by(self.table, word, offset, length) or refusal(
            self.offer, word, offset, length
        )


def refused_by(table: Table, word: int, offset: int, length: int) -> RefusedCommand | None:
    """Say why a table refuses a request; None if it does not."""
    number = word & 0xFFFF
    if number not in ALL_COMMANDS:
        return None
    return table[Cmd(number)].refusal(Cmd(number), word >> 16, offset, length)


@dataclass(frozen=True, slots=True)
class Plan:
    """One session's terms, in the form that the scanners need."""

    offer: Offer
    link: Framing
    """The link's framing (the client's is `offer.framing`)."""
    rules: dict[int, WordRule]
    """Every legal word, with what the upstream would see of it."""
    fast: dict[int, tuple[int, int, Ranges | None]]
    """The words that are FAST or REFRAMED: their longest length in bytes, the word that goes upstream, and
    the ranges that must not be touched (None: there are none)."""
    ways: dict[Cmd, Way]
    """How each command goes as a rule."""
    context_ids: dict[int, int | None]
    """The link's context ids -> the client's; None: the client did not select that one."""
    made_up: tuple[int, ...]
    """The client's ids of contexts that are answered here, with status 0."""
    upstream: Abilities
    answer_cache: bool
    """CACHE is answered here."""
    table: Table
    """What policies say of commands, in the client's offsets."""
    hooked: Mapping[Cmd, str]
    """Commands that go through hooks of policies, and whose."""
    shadow: Shadow | None

    def refusal(self, word: int, offset: int, length: int) -> RefusedCommand | None:
        """Say why a request is refused, by a policy or because it is illegal; None if it is neither."""
        return refused_by(self.table, word, offset, length) or refusal(
            self.offer, word, offset, length
        )


PROPER = Dialect()
"""A server that needs no repair."""


def plan(
    offer: Offer,
    export: Export,
    dialect: Dialect = PROPER,
    *,
    table: Table | None = None,
    hooked: Mapping[Cmd, str] = MappingProxyType({}),
    shadow: Shadow | None = None,
    translated: str = "",
) -> Plan:
    """Decide what a session does, from what its client was promised and what its link is.

    `table`, `hooked`, `shadow`: what policies say beyond the offer. `translated` makes every command a job,
    for this reason, which must make no difference to what it means.
    """
    table = table or Table(offer.size)
    if dialect.one_request_a_record:
        translated = translated or "the server answers one request in a TLS record"
    if offer.one_reply_a_record:
        translated = translated or "the client may take one reply from a TLS record"
    rules = _restricted(legal_commands(offer), table, hooked)
    theirs = {context.name for context in export.contexts}
    if dialect.flat_allocation:
        theirs.discard(BASE_ALLOCATION)
    ours = {c.name: c.id for c in offer.contexts if c.name in theirs}
    upstream = _upstream(export, dialect)
    made_up = tuple(context.id for context in offer.contexts if context.name not in theirs)
    ways: dict[Cmd, Way] = {}
    commands = {rule.command for rule in rules.values()}
    for command in Cmd:
        if command is not Cmd.DISC:
            ways[command] = _way(command, commands, offer, export, upstream, dialect, made_up)
            if command in hooked and ways[command].handling is not Handling.REFUSED:
                ways[command] = Way(
                    Handling.TRANSLATED, f"a policy looks at each: {hooked[command]}"
                )
    if translated:
        ways = {
            command: Way(Handling.TRANSLATED, translated) if way.handling in _AS_IT_IS else way
            for command, way in ways.items()
        }
    fast = {}
    for word, rule in rules.items():
        if rule.command in RANGED and ways[rule.command].handling in _AS_IT_IS:
            sent = _sent_word(word, rule, export, upstream)  # None: a job
            if sent is not None:
                longest = min(rule.longest, _longest(rule.command, upstream))
                fast[word] = longest, sent, table[rule.command].ranges
    if shadow is not None:
        fast = _fast_in_both(fast, shadow)
    return Plan(
        offer,
        export.framing,
        rules,
        fast,
        ways,
        {context.id: ours.get(context.name) for context in export.contexts},
        made_up,
        upstream,
        dialect.answer_cache,
        table,
        hooked,
        shadow,
    )


def _restricted(
    rules: dict[int, WordRule], table: Table, hooked: Collection[Cmd] = ()
) -> dict[int, WordRule]:
    """Give what is left of the legal words, with the flags that go upstream; the policies that commands with
    hooks go through see to the flags themselves, one after the other.
    """
    left = {}
    for word, rule in rules.items():
        row = table[rule.command]
        if row.refused is None and not any(word >> 16 & flag for flag, _ in row.refused_flags):
            longest = rule.longest if row.longest is None else min(rule.longest, row.longest)
            passed = rule.flags if rule.command in hooked else row.passed_flags(rule.flags)
            left[word] = WordRule(rule.command, passed, longest)
    return left


_Fast = dict[int, tuple[int, int, Ranges | None]]


def _fast_in_both(fast: _Fast, shadow: Shadow) -> _Fast:
    """Give what is FAST in the shadow, too. All other requests are looked at one by one, and told of."""
    rules = _restricted(legal_commands(shadow.offer), shadow.table)
    both: _Fast = {}
    for word, (longest, sent, _ranges) in fast.items():
        rule = rules.get(word)
        if rule is not None and shadow.offer.alignment == 1:
            # The shadow's ranges are those in force and more.
            both[word] = min(longest, rule.longest), sent, shadow.table[rule.command].ranges
    return both


_AS_IT_IS = (Handling.FAST, Handling.REFRAMED)

_ZEROES_KNOWN_GOOD = EXTENDED
"""Servers with extended headers are younger than the bugs that 32 MiB pieces are for (Q-N1, Q-K2)."""


def _upstream(export: Export, dialect: Dialect) -> Abilities:
    minimum = export.minimum
    known_good = export.framing is _ZEROES_KNOWN_GOOD
    longest = min(longest_payload(export.block_sizes), dialect.longest_payload)
    return Abilities(
        export.size,
        minimum,
        longest - longest % minimum,
        export.size if known_good else limits.WRITE_ZEROES_PIECE_BYTES,
        export.size if known_good else limits.EFFECT_PIECE_BYTES,
        export.size if known_good else limits.BLOCK_STATUS_BYTES,
        fua=bool(export.flags & Flag.SEND_FUA),
        flush=bool(export.flags & Flag.SEND_FLUSH),
        write_zeroes=bool(export.flags & Flag.SEND_WRITE_ZEROES),
        read_flags=_DF if _reads_with_df(export, dialect) else 0,
        status_flags=int(CmdFlag.REQ_ONE) if dialect.status_req_one else 0,
        trim_alignment=max(minimum, dialect.trim_alignment),
    )


def _reads_with_df(export: Export, dialect: Dialect) -> bool:
    return dialect.read_with_df and export.structured and bool(export.flags & Flag.SEND_DF)


def _way(
    command: Cmd,
    commands: set[Cmd],
    offer: Offer,
    export: Export,
    upstream: Abilities,
    dialect: Dialect,
    made_up: tuple[int, ...],
) -> Way:
    if command not in commands:
        return Way(Handling.REFUSED, "it is not offered")
    if command is Cmd.CACHE and dialect.answer_cache:
        return Way(Handling.HERE, "the server cannot be trusted with it")
    if command is Cmd.FLUSH:
        return Way(Handling.TRANSLATED, "it is answered when all is durable that it has to cover")
    if command is Cmd.BLOCK_STATUS and made_up:
        return Way(Handling.TRANSLATED, "a context is answered here")
    if command is Cmd.TRIM and upstream.trim_alignment > upstream.minimum:
        return Way(Handling.TRANSLATED, "the server would trim more than it is asked to")
    if command is Cmd.READ and export.framing.chunked and not offer.framing.chunked:
        return Way(
            Handling.TRANSLATED, "the client has no structured replies, so chunks are put together"
        )
    if command is Cmd.WRITE_ZEROES and not upstream.write_zeroes:
        return Way(Handling.TRANSLATED, "the server has no WRITE_ZEROES, so zeros are written")
    reasons = []
    if offer.framing is not export.framing:
        reasons.append(f"the client's framing is {offer.framing}, the server's {export.framing}")
    if command in RANGED and upstream.minimum > offer.alignment:
        blocks = f"blocks of {upstream.minimum} bytes are read"
        how = f"{blocks}, changed and written" if command in WRITE_CLASS else blocks
        reasons.append(f"TRANSLATED where it is not aligned: {how}")
    longest = _longest(command, upstream)
    if command in RANGED and longest < min(_offered_longest(command, offer), export.size):
        reasons.append(f"TRANSLATED where it is longer than {longest} bytes: it goes in pieces")
    route = Handling.FAST if offer.framing is export.framing else Handling.REFRAMED
    return Way(route, "; ".join(reasons))


def _offered_longest(command: Cmd, offer: Offer) -> int:
    return offer.longest_payload if command in (Cmd.READ, Cmd.WRITE) else offer.size


def _sent_word(word: int, rule: WordRule, export: Export, upstream: Abilities) -> int | None:
    """Give the word that goes upstream for a client's; None if it takes a job."""
    flags = rule.flags
    if rule.command is Cmd.BLOCK_STATUS and word >> 16 & _PAYLOAD_LEN:
        return None
    if flags & _FUA and rule.command in FUA_MATTERS and not upstream.fua:
        return None
    if rule.command is Cmd.READ and flags & _DF:
        if not export.structured:
            flags &= ~_DF  # one simple reply cannot be a fragment: DF holds without being sent
        elif not export.flags & Flag.SEND_DF:
            return None
    if rule.command is Cmd.READ:
        flags |= upstream.read_flags
    if rule.command is Cmd.BLOCK_STATUS:
        flags |= upstream.status_flags
    if rule.command is Cmd.WRITE and export.extended:
        flags |= _PAYLOAD_LEN
    return flags << 16 | rule.command


def _longest(command: Cmd, upstream: Abilities) -> int:
    match command:
        case Cmd.READ | Cmd.WRITE:
            return upstream.longest_payload
        case Cmd.WRITE_ZEROES:
            return upstream.longest_zeroes
        case Cmd.BLOCK_STATUS:
            return upstream.longest_status
        case _:
            return upstream.longest_effect


def contexts_wanted(plan: Plan) -> tuple[tuple[int, int | None], ...]:
    """Give the client's contexts: its id, and the link's (None: answered here)."""
    theirs = {ours: link for link, ours in plan.context_ids.items() if ours is not None}
    return tuple((context.id, theirs.get(context.id)) for context in plan.offer.contexts)
