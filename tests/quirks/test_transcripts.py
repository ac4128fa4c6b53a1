"""Every quirk's transcripts, replayed; and every file of the package is a quirk."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import quirks
from gateway.protocol.client_role import Style
from gateway.protocol.export import Export
from gateway.quirks import (
    TOLD_BY_INFO,
    Dialect,
    Evidence,
    Quirk,
    Transcript,
    catalogue,
    dialect_of,
    recognised,
    with_flags,
)
from tests.quirks.proofs import check_proof

TRANSCRIPTS = [(quirk, t) for quirk in catalogue().values() for t in quirk.transcripts]


@pytest.mark.parametrize(
    ("quirk", "transcript"), TRANSCRIPTS, ids=[f"{q.name}: {t.peer}" for q, t in TRANSCRIPTS]
)
def test_transcript(quirk: Quirk, transcript: Transcript) -> None:
    found = recognised(transcript.evidence)
    assert dialect_of(found) == transcript.dialect
    assert (quirk in found) == quirk.applies(transcript.evidence)
    assert transcript.evidence.unasked_info in TOLD_BY_INFO, "no negotiation shows that"


def test_every_file_is_a_quirk() -> None:
    folder = Path(quirks.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "fingerprint", "everywhere"}
    assert {name.replace("-", "_") for name in catalogue()} == files


@pytest.mark.parametrize("quirk", catalogue().values(), ids=catalogue().keys())
def test_a_quirk_says_what_it_is(quirk: Quirk) -> None:
    assert quirk.summary
    assert quirk.consequence
    assert quirk.affected
    check_proof(quirk.proof)
    assert quirk.links
    assert all(link.startswith("https://") for link in quirk.links)
    applies = [quirk.applies(t.evidence) for t in quirk.transcripts]
    assert True in applies, "nobody who does it"
    assert False in applies, "nobody who does not"
    assert quirk.turn(Dialect()) != Dialect()


def test_a_server_without_oddities() -> None:
    assert recognised(Evidence(Style.FIXED_NEWSTYLE, 1)) == ()
    assert dialect_of([]) == Dialect()


def test_flags_add_up() -> None:
    dialect = with_flags(with_flags(Dialect(), clear=1, add=2), clear=4, add=8)
    assert (dialect.clear_flags, dialect.add_flags) == (5, 10)
    assert dialect.repair(Export(0, 0b10101)).flags == 0b11010
