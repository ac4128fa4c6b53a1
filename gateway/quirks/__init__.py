"""Oddities of peers, one file each, and how the gateway mends them.

A quirk module has a `QUIRK`: what it is in one line, who does it and how that is known (with links), how to
recognise it from the `Evidence` of a negotiation, which knobs of the core's `Dialect` it turns, and
transcripts of what peers say, with what must come of it. `tests/quirks/test_transcripts.py` replays them all;
they show that knobs are turned, and whoever obeys a knob has a test of that.

The core has knobs and never asks "is this qemu?". Evidence that is missing means "does not apply", except
where a wrong yes only costs speed and a wrong no puts data at risk.

A new file in this package is a new quirk; no other code has to be edited, if `Evidence` and `Dialect` have what
it needs (docs/how-it-works.md says what else). Two files are none:

everywhere.py   what peers get wrong and the core copes with for everyone
fingerprint.py  which program a server is, by what its negotiation shows
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, lru_cache

from gateway.protocol.client_role import Style
from gateway.protocol.export import Export, repaired
from gateway.wire import limits
from gateway.wire.constants import Rep
from gateway.wire.handshake import BlockSizes

TOLD_BY_INFO = (None, Rep.ACK, Rep.ERR_BLOCK_SIZE_REQD)
"""What an INFO that does not ask for block sizes may show. A refusal for another reason is the client's."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the negotiation with an upstream has shown of it. `gateway.upstream.option_phase` makes it, and
    `gateway.upstream.examined` remembers servers by it.
    """

    style: Style
    flags: int
    """Transmission flags, as sent."""
    block_sizes: BlockSizes | None = None
    """As sent in answer to an INFO or GO that asked for them."""
    unasked_info: int | None = None
    """The reply type that ended an INFO which did not ask for block sizes: one of `TOLD_BY_INFO`. None if none
    was to be had, or it was another."""
    structured: bool = False
    """Structured replies were agreed."""
    named: bool = False
    """INFO or GO told a name (INFO_NAME) that was asked for; it may be empty."""
    sizeless_info: bool = False
    """An INFO said that the export has no bytes, and GO that it has."""
    info_known: bool = True
    """INFO and GO are known there."""
    secure: bool = False
    """It is spoken to over TLS."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The core's knobs; the defaults are proto.md's server."""

    clear_flags: int = 0
    """Transmission flags that the upstream sets and does not mean."""
    add_flags: int = 0
    """Transmission flags that it means and does not set, or that the gateway serves in its place."""
    answer_cache: bool = False
    """CACHE is answered here with success, which is always a legal way to serve it, and not sent on."""

    read_with_df: bool = False
    """Every READ carries DF."""
    flat_allocation: bool = False
    """base:allocation is not believed, and told as status 0 of everything."""
    unstated_minimum: int = 1
    """The minimum block in bytes, where block sizes do not say it."""
    trim_alignment: int = 1
    """TRIM is narrowed to whole blocks of so many bytes."""
    status_req_one: bool = False
    """Every BLOCK_STATUS carries REQ_ONE."""
    own_disks: bool = False
    """Each connection may have a disk of its own: what was written over one that is lost is not looked for over
    another."""
    one_request_a_record: bool = False
    """Over TLS no two requests are in one record."""
    longest_payload: int = limits.MAX_REQUEST_BYTES
    """READ and WRITE are split to so many bytes, where block sizes do not say less."""

    def repair(self, export: Export) -> Export:
        """Give the export as the upstream means it."""
        return repaired(
            export,
            clear=self.clear_flags,
            add=self.add_flags,
            unstated_minimum=self.unstated_minimum,
        )


@dataclass(frozen=True, slots=True)
class Transcript:
    """Evidence of one peer, and the dialect that must come of it."""

    peer: str
    evidence: Evidence
    dialect: Dialect
    """That of all quirks that are recognised in the evidence, not of the one alone whose transcript this is."""


class How(Enum):
    """What stands behind a line of the catalogue, the strongest first."""

    SEEN = "seen in the real program"
    READ = "read in its source"
    TOLD = "told by others"


@dataclass(frozen=True, slots=True)
class Proof:
    """How we know that a program does what is said of it: seen in the real program, wherever that could be
    had. `tests/quirks/proofs.py` looks for a version in what was seen, and for a file, commit or number in what
    was read or told.
    """

    how: How
    where: str
    """Which versions, and how; or where it is written."""

    def __str__(self) -> str:
        return f"{self.how.value}: {self.where}"


def seen(where: str) -> Proof:
    """It was seen in the real program; `where` has to contain a version."""
    return Proof(How.SEEN, where)


def read(where: str) -> Proof:
    """It was read in the program's source, and not tried; `where` has to contain a file of C (`.c` or `.h`)."""
    return Proof(How.READ, where)


def told(where: str) -> Proof:
    """Others tell of it; `where` has to contain a file, a commit or a `#number`."""
    return Proof(How.TOLD, where)


@dataclass(frozen=True, slots=True)
class Quirk:
    """One oddity. `name` is what operators write; `links` are the places that prove it."""

    name: str
    summary: str
    consequence: str
    affected: str
    proof: Proof
    links: tuple[str, ...]
    applies: Callable[[Evidence], bool]
    turn: Callable[[Dialect], Dialect]
    risks_data: bool
    """Who does not know of it may lose data."""
    transcripts: tuple[Transcript, ...]


@cache
def catalogue() -> dict[str, Quirk]:
    """Give all quirks by name: one for each module of this package."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        quirk = getattr(importlib.import_module(f"{__name__}.{module.name}"), "QUIRK", None)
        if quirk is not None:  # everywhere.py and fingerprint.py have none
            found[quirk.name] = quirk
    return found


@lru_cache(maxsize=1024)  # the exports of a server differ little
def recognised(evidence: Evidence) -> tuple[Quirk, ...]:
    """Give the quirks that the evidence speaks for."""
    return tuple(quirk for quirk in catalogue().values() if quirk.applies(evidence))


def dialect_of(quirks: Iterable[Quirk]) -> Dialect:
    """Give the dialect that comes of turning every quirk's knobs."""
    dialect = Dialect()
    for quirk in quirks:
        dialect = quirk.turn(dialect)
    return dialect


def with_flags(dialect: Dialect, *, clear: int = 0, add: int = 0) -> Dialect:
    """Give the dialect with more flags to clear and to add."""
    return replace(
        dialect, clear_flags=dialect.clear_flags | clear, add_flags=dialect.add_flags | add
    )
