"""What is offered and what is done are the same, whatever two policies stand behind each other.

Every installed policy, with the options of its own example, before and behind every other: over one upstream,
what the data plane passes on unseen, the refusals that it gives, and the chain that hooks go through have to
say the same of every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
import trio

from gateway.access.chain import Compiled, Placed, compile_chain, peek
from gateway.access.loading import catalogue
from gateway.config import Route
from gateway.jobs.locks import ASK
from gateway.policy import RANGED, WRITE_CLASS, Cmd, CmdFlag, Denied, Failed, Request, Result
from gateway.protocol.commands import NEEDS_FLAG
from gateway.protocol.errors import Hangup
from gateway.protocol.export import Export, Offer
from gateway.scan.plan import PROPER, Plan
from gateway.scan.plan import Handling as Way
from gateway.scan.requests import RequestScan
from gateway.scan.traffic import Traffic
from gateway.sessions.promise import first_view, plan_of, promise
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes, MetaContext
from tests.policies import examples
from tests.policies.harness import EVERYTHING, KIB, MIB, configured, session

GIB = 1 << 30
SIZE = 16 * GIB + 512
"""More than what any example says of the disk, and no round number."""
CONTEXTS = (
    MetaContext(1, BASE_ALLOCATION),
    MetaContext(2, DIRTY_BITMAP + "backup-1"),
    MetaContext(3, DIRTY_BITMAP + "other"),
)
EXPORTS = {
    "any block": Export(
        SIZE, EVERYTHING, BlockSizes(1, 4096, 32 * MIB), None, None, True, CONTEXTS, True
    ),
    "whole blocks": Export(
        SIZE, EVERYTHING, BlockSizes(512, 4096, 32 * MIB), None, None, True, CONTEXTS, True
    ),
}
DIALECTS = {"any block": [(True, True), (False, False)], "whole blocks": [(True, False)]}
"""What the client negotiated: structured replies, extended headers."""
ROUTE = Route("main", "disk", None)
NAMES = [*catalogue().names()]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "FOLDER", tmp_path)


def placed(name: str) -> list[Placed]:
    """A policy with the options of each of its examples."""
    policy = catalogue().find(name)
    return [Placed(configured(policy, each), name) for each in examples.examples(name)]


def compiled(chain: Sequence[Placed], export: Export, route: Route = ROUTE) -> Compiled | None:
    """What a chain comes to; None: the client does not get the export."""
    try:
        return compile_chain(peek(chain, session()), first_view(route, export))
    except Denied:
        return None


def planned(agreed: Compiled, export: Export, *, structured: bool, extended: bool) -> Plan:
    promised = promise(
        agreed,
        structured=structured,
        extended=extended,
        selected=export.contexts if structured else (),
    )
    return plan_of(agreed, promised, export, PROPER)


# --- Requests


def boundaries(agreed: Compiled, offer: Offer) -> Iterator[tuple[int, int]]:
    """Ranges at and over every edge that there is: of the view, and of what the table says."""
    edges = {0, offer.size, offer.size // 2}
    lengths = {1, 512, 64 * KIB}
    for row in agreed.table.rows.values():
        for barred in row.barred[:2] + row.barred[-1:]:
            edges |= {barred.start, barred.end}
        lengths |= {row.longest, row.longest + 1} if row.longest else set()
    for edge, length in product(edges, lengths):
        for start in (edge, edge - length, edge - 1, edge - 512, edge - length + 512):
            if start >= 0:
                yield start, length
    yield from [(2**64 - 1, 2), (2**64 - 512, 1024), (0, 2**32), (0, 2**63), (512, 2**64 - 1)]
    yield from [(0, offer.size), (0, 33 * MIB), (0, 64 * MIB + 512), (offer.size, 512)]


FLAGS = {
    Cmd.READ: (0, CmdFlag.FUA, CmdFlag.DF, CmdFlag.NO_HOLE),
    Cmd.WRITE: (0, CmdFlag.FUA, CmdFlag.FAST_ZERO),
    Cmd.WRITE_ZEROES: (
        *(0, CmdFlag.FUA, CmdFlag.NO_HOLE, CmdFlag.FAST_ZERO),
        CmdFlag.FAST_ZERO | CmdFlag.NO_HOLE | CmdFlag.FUA,
    ),
    Cmd.TRIM: (0, CmdFlag.FUA, CmdFlag.NO_HOLE),
    Cmd.CACHE: (0, CmdFlag.FUA),
    Cmd.BLOCK_STATUS: (0, CmdFlag.REQ_ONE, CmdFlag.DF),
}


ZEROES = memoryview(bytes(64 * MIB))  # as much as a WRITE may have; what is longer is refused


def requests(agreed: Compiled, offer: Offer) -> Iterator[Request]:
    for offset, length in dict.fromkeys(boundaries(agreed, offer)):
        for command, several in FLAGS.items():
            for flags in several:
                data = ZEROES[:length] if command is Cmd.WRITE else b""
                yield Request(command, offset, length, int(flags), data)
    yield Request(Cmd.FLUSH)
    yield Request(Cmd.FLUSH, 0, 512)


# --- The three that have to agree


def goes_fast(plan: Plan, request: Request, word: int) -> bool:
    """Whether the data plane passes a request on as it is, and not what a job has made of it."""
    if word not in plan.fast:
        return False
    traffic = Traffic(plan)
    head = plan.offer.framing.encode_request(
        request.command, request.flags, 1, request.offset, request.length
    )
    data = bytearray(head)
    with suppress(Hangup):  # refused, and longer than what is worth reading on for
        RequestScan(traffic).feed(data, memoryview(data), 0, len(data), [])
    return any(not entry[1] & ASK for entry in traffic.in_flight.values())


async def chain_says(agreed: Compiled, request: Request) -> tuple[bool, list[Request]]:
    """Whether the chain lets a request be done, and what reaches the upstream."""
    reached: list[Request] = []

    async def bottom(request: Request) -> Result:
        reached.append(request)
        if request.command is Cmd.READ:
            return bytes(request.length)
        if request.command is Cmd.BLOCK_STATUS:
            return {name: [(request.length, 0)] for name in request.contexts}
        return None

    try:
        await agreed.do(request, bottom)
    except Failed:
        return False, reached
    return True, reached


async def agree(agreed: Compiled, plan: Plan, *, all_there: bool) -> list[str]:
    """What they do not agree on. `all_there`: the client has all that the chain has, framing and contexts."""
    wrong = []
    offer = plan.offer
    for request in requests(agreed, offer):
        word = request.flags << 16 | request.command
        refused = plan.refusal(word, request.offset, request.length)
        too_long = request.length > plan.offer.framing.max_length  # cannot even be said
        if refused and not too_long and goes_fast(plan, request, word):
            wrong.append(f"{request} goes FAST, and is refused: {refused.text}")
        if request.command in plan.hooked or not all_there:
            continue
        done, reached = await chain_says(agreed, request)
        if done == (refused is not None):
            wrong.append(f"{request}: table says {refused}, the chain {done}")
        rule = plan.rules.get(word)
        if done and reached and rule is not None:
            [there] = reached
            if there.offset != request.offset + offer.base * (request.command in RANGED):
                wrong.append(f"{request} reaches {there}")
            passed = rule.flags & ~CmdFlag.FUA if request.command not in WRITE_CLASS else rule.flags
            sent = there.flags & ~CmdFlag.FUA if request.command not in WRITE_CLASS else there.flags
            if sent != passed:
                wrong.append(f"{request} is sent with {sent:#x} instead of {passed:#x}")
    return wrong


def keeps_its_word(agreed: Compiled, plan: Plan) -> list[str]:
    """What is offered and refused altogether, or not offered and taken."""
    wrong = []
    offer = plan.offer
    offered = {
        command: offer.allows(flag)
        and not (command in WRITE_CLASS and offer.allows(Flag.READ_ONLY))
        for command, flag in NEEDS_FLAG.items()
    }
    offered[Cmd.BLOCK_STATUS] = bool(offer.contexts)
    for command, is_offered in offered.items():
        taken = command in {rule.command for rule in plan.rules.values()}
        if command is Cmd.BLOCK_STATUS and agreed.table[command].refused is not None:
            is_offered = False
        if taken != is_offered:
            wrong.append(f"{command.name} is offered: {is_offered}, taken: {taken}")
    if offer.allows(Flag.READ_ONLY):
        wrong += [
            f"{rule.command.name} of an export that is read-only"
            for rule in plan.rules.values()
            if rule.command in WRITE_CLASS
        ]
    # The last block that is offered can be reached, and nothing behind it.
    last = max(512, offer.alignment)
    for command in {rule.command for rule in plan.rules.values()} & RANGED:
        at = offer.size - last
        touched = any(each.end > at for each in agreed.table[command].barred)
        inside = plan.refusal(command, at, last)
        if offer.size >= last and inside and not touched:
            wrong.append(f"{command.name} of the last block: {inside.text}")
        if not plan.refusal(command, at + last, last):
            wrong.append(f"{command.name} behind the end is taken")
    return wrong


@pytest.mark.exhaustive
@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("first", NAMES)
def test_every_pair(first: str, export: str) -> None:
    there = EXPORTS[export]
    wrong: list[str] = []
    compared = 0

    async def compare() -> None:
        nonlocal compared
        for second in NAMES:
            for one, other in product(placed(first), placed(second)):
                agreed = compiled([one, other], there)
                if agreed is None:
                    continue
                compared += 1
                found: list[str] = []
                for structured, extended in DIALECTS[export]:
                    plan = planned(agreed, there, structured=structured, extended=extended)
                    found += await agree(agreed, plan, all_there=extended)
                    found += keeps_its_word(agreed, plan)
                wrong.extend(f"{first} before {second}: {each}" for each in found[:3])

    trio.run(compare)
    assert not wrong, "\n".join(wrong[:40])
    assert compared or first == "window"


# --- The price


RESTRICTING: list[tuple[str, dict[str, object]]] = [
    ("protect", {"ranges": ["0-0x1bd", "1M+512M"]}),
    ("commands", {"deny": ["CACHE", "TRIM"], "write-range": "1M-", "longest-request": "16M"}),
    ("limit", {"connections": 4, "in-flight": 64, "request-size": "16M"}),
    ("contexts", {"allow": ["base:allocation"]}),
    ("blocksize", {"minimum": 512, "maximum": "8M"}),
    ("flags", {"mask": ["CAN_MULTI_CONN"], "require": ["SEND_FLUSH"]}),
    ("window", {"offset": "1M", "size": "10G"}),
    ("exports", {"rename": {"vm-1": "disk"}}),
    ("truncate", {"round-down": "1M"}),
    ("rate", {"bytes-per-second": "10M", "operations-per-second": 500}),
]


def restricting(*more: tuple[str, dict[str, object]]) -> list[Placed]:
    named = [*RESTRICTING, *more]
    return [Placed(configured(catalogue().find(name), said), name) for name, said in named]


def test_ten_restricting_policies_cost_the_data_plane_nothing() -> None:
    export = EXPORTS["any block"]
    agreed = compiled(restricting(), export)
    assert agreed is not None
    plan = planned(agreed, export, structured=True, extended=True)
    assert len(agreed.stages) == 10
    assert not plan.hooked
    for command in (Cmd.READ, Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.BLOCK_STATUS):
        assert plan.ways[command].handling is Way.FAST, plan.ways[command]
        assert any(word & 0xFFFF == command for word in plan.fast)
    for command in (Cmd.CACHE, Cmd.TRIM):
        assert plan.ways[command].handling is Way.REFUSED
    assert goes_fast(plan, Request(Cmd.READ, 0, 4096), Cmd.READ)
    assert not goes_fast(plan, Request(Cmd.WRITE, 2 * MIB, 4096), Cmd.WRITE)
    beyond = Request(Cmd.WRITE, 600 * MIB, 4096)
    assert goes_fast(plan, beyond, Cmd.WRITE)


def test_so_does_what_only_reads() -> None:
    export = EXPORTS["any block"]
    agreed = compiled(restricting(("readonly", {}), ("trim", {"how": "none"})), export)
    assert agreed is not None
    plan = planned(agreed, export, structured=True, extended=True)
    assert plan.ways[Cmd.READ].handling is Way.FAST
    assert plan.ways[Cmd.WRITE].handling is Way.REFUSED
