"""How many connections an export may have: every combination of what decides it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from gateway.config import Connections
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.upstream.coherence import Decision, check_required, decide, offered, sentence
from gateway.wire.constants import Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes, MetaContext

QUIRK = "qemu-multi-conn-bit"
PLAIN = int(Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA)
MULTI, RO = int(Flag.CAN_MULTI_CONN), int(Flag.READ_ONLY)
EXPORT = Export(
    1 << 20,
    PLAIN,
    BlockSizes(1, 4096, 1 << 25),
    "disk",
    "words",
    structured=True,
    contexts=(MetaContext(1, "base:allocation"), MetaContext(2, "qemu:dirty-bitmap:b")),
)

PER_CLIENT, SHARED = Connections(), Connections(shared=True)
FOUR, SHARED_FOUR = Connections(count=4), Connections(shared=True, count=4)

# server -> (may there be four connections, does the server promise CAN_MULTI_CONN over several of ours)
SERVERS = {
    # plain: one address, or several of one server
    (0, "one"): (False, False),
    (MULTI, "one"): (True, True),
    (RO, "one"): (True, False),
    (MULTI | RO, "one"): (True, True),
    # several servers of one disk: FLUSH on one does not cover the others, which nobody needs who reads
    (0, "same-storage"): (False, False),
    (MULTI, "same-storage"): (False, False),
    (RO, "same-storage"): (True, False),
    (MULTI | RO, "same-storage"): (True, True),
    # several uris that nothing is known of
    (0, "may-differ"): (False, False),
    (MULTI, "may-differ"): (False, False),
    (RO, "may-differ"): (False, False),
    (MULTI | RO, "may-differ"): (False, True),
}

OTHERS = {
    "size": replace(EXPORT, size=(1 << 20) - 512),
    "flags": replace(EXPORT, flags=PLAIN & ~Flag.SEND_FUA),
    "more flags": replace(EXPORT, flags=PLAIN | Flag.ROTATIONAL),
    "unknown flags": replace(EXPORT, flags=PLAIN | 1 << 15),
    "block sizes": replace(EXPORT, block_sizes=BlockSizes(512, 4096, 1 << 25)),
    "no block sizes": replace(EXPORT, block_sizes=None),
    "name": replace(EXPORT, name="disk2"),
    "no name": replace(EXPORT, name=None),
    "contexts": replace(EXPORT, contexts=EXPORT.contexts[:1]),
    "framing": replace(EXPORT, extended=True),
    "simple": replace(EXPORT, structured=False),
}
"""Exports that differ from `EXPORT` in one thing."""


def decided(
    wanted: Connections, flags: int, place: str, *more: Export, quirks: tuple[str, ...] = ()
) -> Decision:
    first, *others = (
        replace(export, flags=export.flags | flags) for export in (EXPORT, *(more or 3 * (EXPORT,)))
    )
    return decide(
        wanted,
        [first, *others],
        same_storage=place == "same-storage",
        may_differ=place == "may-differ",
        repaired=quirks,
    )


@pytest.mark.parametrize(("flags", "place"), SERVERS)
@pytest.mark.parametrize("quirks", [(), (QUIRK,)])
def test_what_every_server_gets(flags: int, place: str, quirks: tuple[str, ...]) -> None:
    four, promised = SERVERS[flags, place]

    def found(wanted: Connections) -> tuple[int, bool, bool]:
        decision = decided(wanted, flags, place, quirks=quirks)
        return decision.count, decision.may_offer_multi_conn, decision.reason == ""

    count = 4 if four else 1
    assert found(PER_CLIENT) == (1, promised, True)
    assert found(SHARED) == (1, True, True)
    assert found(FOUR) == (count, promised, four)
    # One that all share is safe to be promised; of several, the server has to say so.
    assert found(SHARED_FOUR) == (count, promised or not four, four)


@pytest.mark.parametrize("flags", [0, MULTI, RO, MULTI | RO])
@pytest.mark.parametrize("place", ["one", "same-storage", "may-differ"])
@pytest.mark.parametrize("wanted", [PER_CLIENT, SHARED, FOUR, SHARED_FOUR], ids=str)
def test_the_first_connection_alone_says_what_its_likes_will(
    flags: int, place: str, wanted: Connections
) -> None:
    assert decided(wanted, flags, place, EXPORT) == decided(wanted, flags, place)
    alone = replace(EXPORT, flags=EXPORT.flags | flags)
    same_storage, may_differ = place == "same-storage", place == "may-differ"
    found = decide(wanted, [alone], same_storage=same_storage, may_differ=may_differ)
    assert found == decided(wanted, flags, place)


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("flags", [MULTI, RO, MULTI | RO])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_connections_that_differ(what: str, flags: int, number: int) -> None:
    more = [EXPORT] * 3
    more[number - 2] = OTHERS[what]
    own = decided(FOUR, flags, "one", *more)
    assert (own.count, own.may_offer_multi_conn) == (1, False)
    assert f"connection {number} differs from the first" in own.reason
    shared = decided(SHARED_FOUR, flags, "one", *more)
    assert (shared.count, shared.may_offer_multi_conn, shared.reason) == (1, True, own.reason)


def test_what_need_not_be_alike() -> None:
    renumbered = tuple(replace(each, id=9 - each.id) for each in reversed(EXPORT.contexts))
    other = replace(EXPORT, contexts=renumbered, description="other words")
    assert decided(FOUR, MULTI, "one", EXPORT, other).count == 4


def every_reason() -> Iterator[str]:
    wanteds, places = (FOUR, SHARED_FOUR), ("one", "same-storage", "may-differ")
    mores = ((EXPORT,), *((EXPORT, other) for other in OTHERS.values()))
    for wanted, flags, place, more in product(wanteds, (0, MULTI, RO, MULTI | RO), places, mores):
        for quirks in ((), ("another",), ("another", QUIRK)):
            if reason := decided(wanted, flags, place, *more, quirks=quirks).reason:
                yield reason


def test_every_reason_is_one_sentence() -> None:
    reasons = set(every_reason())
    # two of addresses, two of CAN_MULTI_CONN, and a connection that differs under three sets of flags
    assert len(reasons) >= 4 + len(OTHERS)
    for reason in reasons:
        assert re.fullmatch(r"one connection instead of 4: [a-z][^\n]{30,}[^.!?,;: ]", reason), (
            reason
        )
        assert not re.search(r"[.!?](\s|$)", reason), reason
        assert "  " not in reason


def test_the_sentences() -> None:
    assert decided(FOUR, 0, "one", quirks=(QUIRK,)).reason == (
        "one connection instead of 4: the server does not offer CAN_MULTI_CONN (its bit 8 is qemu 3.0's CACHE; "
        "quirk qemu-multi-conn-bit), so what is written over one connection need not be seen over another"
    )
    assert decided(FOUR, 0, "one").reason == (
        "one connection instead of 4: the server does not offer CAN_MULTI_CONN, so what is written over one "
        "connection need not be seen over another"
    )
    assert decided(FOUR, MULTI, "one", EXPORT, OTHERS["size"]).reason == (
        "one connection instead of 4: connection 3 differs from the first in its size (1048064 bytes in place "
        "of 1048576 bytes), so they may not lead to the same disk"
    )
    assert decided(FOUR, MULTI, "one", OTHERS["name"]).reason == (
        "one connection instead of 4: connection 2 differs from the first in its canonical name ('disk2' in "
        "place of 'disk'), so they may not lead to the same disk"
    )
    assert "same-storage = true" in decided(FOUR, MULTI, "same-storage").reason
    assert "the uris" in decided(FOUR, MULTI, "may-differ").reason
    assert sentence(FOUR, 2, "that is all") == "2 connections instead of 4: that is all"


def test_the_manual_has_sentences_that_are_said() -> None:
    """Whoever is told one of them can look it up there: one of each kind but that of several uris, which
    `check` does not let pass.
    """
    manual = (Path(__file__).parents[2] / "docs" / "connections.md").read_text(encoding="utf-8")
    quoted = re.findall(r"(?m)^one connection instead of .*$", manual)
    said = {*every_reason()}
    said |= {
        decided(FOUR, MULTI, "one", EXPORT, OTHERS["size"]).reason,
        decided(FOUR, 0, "one", quirks=(QUIRK,)).reason,
    }
    assert len(quoted) == 4
    assert {*quoted} <= said


def test_connections_required() -> None:
    check_required(FOUR, decided(FOUR, MULTI, "one"))
    check_required(SHARED, decided(SHARED, 0, "one"))
    less = decided(FOUR, 0, "one")
    with pytest.raises(Refusal) as caught:
        check_required(FOUR, less)
    assert caught.value.reply == Rep.ERR_POLICY
    assert caught.value.text.endswith(less.reason)


@pytest.mark.parametrize("before", [0, MULTI])
@pytest.mark.parametrize("may", [False, True])
def test_what_clients_see(before: int, may: bool) -> None:
    export = replace(EXPORT, flags=EXPORT.flags | before)
    seen = offered(export, Decision(1, "", may))
    assert seen == replace(EXPORT, flags=PLAIN | (MULTI if may else 0))
