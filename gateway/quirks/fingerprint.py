"""Which program a server is, by what its negotiation shows: no version stands on the wire, but for that of a
gateway, which says it to who asks.

A guess for people, with its reasons. Nothing is repaired because of it: repairs go by what they need to know
(each quirk's `applies`).

The features of qemu by version, which most of this goes by: 2.6 TLS; 2.8 WRITE_ZEROES; 2.10 GO and block sizes;
2.11 structured replies; 2.12 base:allocation; 3.0 dirty bitmaps and CACHE, whose flag is another one in 3.0.0;
4.0 an INFO that does not ask for block sizes is answered; 4.2 FAST_ZERO, and CAN_MULTI_CONN for read-only
exports; 7.1 CAN_MULTI_CONN for writable ones; 8.2 extended headers (nbd-reference 3.1, F1; 3.3, F2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.protocol import introduction
from gateway.protocol.client_role import Style
from gateway.quirks import Evidence
from gateway.wire.constants import BASE_ALLOCATION, Rep
from gateway.wire.constants import TransmissionFlag as Flag

QEMU_MAXIMUM = 32 * 1024 * 1024
QEMU_PREFERRED = 4096

GATEWAY = "nbd-gateway"


@dataclass(frozen=True, slots=True)
class Program:
    """What a server seems to be."""

    name: str
    """`qemu`, `nbdkit`, `nbd-server`, `nbd-gateway`, or `unknown`."""
    versions: str = ""
    """As `>=3.0.0,<3.0.1`; empty if nothing can be said. A gateway says its own."""
    reasons: tuple[str, ...] = field(default=())


def identify(
    evidence: Evidence, *, extended: bool, contexts: tuple[str, ...], gateway: str | None = None
) -> Program:
    """Say which program the evidence fits; `contexts` are those that it listed. `gateway` is the version that
    it says it has, if it says that it is one: what else it shows is of the server behind it.
    """
    if gateway is not None:
        reason = f"it says so when it is asked (LIST_META_CONTEXT {introduction.QUERY})"
        return Program(GATEWAY, gateway, (reason,))
    # Those from 4.0 on insist as well, if their blocks are larger than a byte. From 4.2 on they offer
    # FAST_ZERO, or, read-only, no TRIM.
    trim, fast_zero = Flag.SEND_TRIM, Flag.SEND_FAST_ZERO
    insists = evidence.unasked_info == Rep.ERR_BLOCK_SIZE_REQD
    if insists and evidence.flags & (trim | fast_zero) == trim:
        return _old_qemu(evidence, contexts)
    sizes = evidence.block_sizes
    like_qemu = (
        sizes is not None
        and (sizes.preferred, sizes.maximum) == (max(QEMU_PREFERRED, sizes.minimum), QEMU_MAXIMUM)
        and (sizes.minimum == 1 or evidence.unasked_info != Rep.ACK)
    )
    if like_qemu and evidence.structured:
        return _new_qemu(evidence, extended=extended, contexts=contexts)
    if not evidence.info_known:
        return _without_info(evidence)
    others = evidence.flags & (Flag.SEND_CACHE | Flag.SEND_FAST_ZERO)
    if sizes is None and evidence.flags & Flag.CAN_MULTI_CONN and not others and not contexts:
        versions = ">=3.25" if evidence.structured else ">=3.15,<3.25"
        reasons = ("no block sizes though they were asked for", "CAN_MULTI_CONN without CACHE")
        return Program("nbd-server", versions, reasons)
    if evidence.structured and not extended and set(contexts) <= {BASE_ALLOCATION}:
        reason = (
            "structured replies, an INFO that asks for nothing is answered, no context of qemu's"
        )
        return Program("nbdkit", ">=1.12", (reason,))
    return Program("unknown")


def _old_qemu(evidence: Evidence, contexts: tuple[str, ...]) -> Program:
    reasons = ["an INFO that does not ask for block sizes is refused (2.10 to 3.1)"]
    if evidence.flags & Flag.CAN_MULTI_CONN and not evidence.flags & Flag.SEND_CACHE:
        reasons.append("CAN_MULTI_CONN without CACHE (3.0.0 alone)")
        return Program("qemu", ">=3.0.0,<3.0.1", tuple(reasons))
    if evidence.flags & Flag.SEND_CACHE:
        reasons.append("SEND_CACHE (3.0; 3.0.0 itself sets CAN_MULTI_CONN in its place)")
        return Program("qemu", ">=3.0.1,<4.0", tuple(reasons))
    if not evidence.structured:
        return Program("qemu", ">=2.10,<2.11", (*reasons, "no structured replies"))
    if BASE_ALLOCATION in contexts:
        reasons.append("base:allocation (2.12), and no CACHE (3.0)")
        return Program("qemu", ">=2.12,<3.0", tuple(reasons))
    return Program("qemu", ">=2.11,<2.12", (*reasons, "structured replies (2.11), no contexts"))


def _new_qemu(evidence: Evidence, *, extended: bool, contexts: tuple[str, ...]) -> Program:
    reasons = ["block sizes as qemu's"]
    if evidence.unasked_info != Rep.ERR_BLOCK_SIZE_REQD:
        reasons = [
            "block sizes as qemu's, and an INFO that does not ask for them is answered (4.0)"
        ]
    flags = evidence.flags
    writable = not flags & Flag.READ_ONLY
    lowest, below = "4.0", ""
    if flags & Flag.SEND_FAST_ZERO or (not writable and flags & Flag.CAN_MULTI_CONN):
        lowest = "4.2"
        reasons.append("FAST_ZERO, or CAN_MULTI_CONN of a read-only export (4.2)")
    if "qemu:allocation-depth" in contexts:
        lowest = "5.2"
        reasons.append("qemu:allocation-depth (5.2)")
    if writable and flags & Flag.CAN_MULTI_CONN:
        lowest = "7.1"
        reasons.append("CAN_MULTI_CONN of a writable export (7.1)")
    if extended:
        lowest = "8.2"
        reasons.append("extended headers (8.2)")
    else:
        below = ",<8.2"
        reasons.append("no extended headers (8.2)")
    return Program("qemu", f">={lowest}{below}", tuple(reasons))


def _without_info(evidence: Evidence) -> Program:
    if evidence.style is Style.OLDSTYLE:
        if evidence.flags & Flag.CAN_MULTI_CONN and not evidence.flags & Flag.SEND_CACHE:
            reason = "oldstyle, with CAN_MULTI_CONN and without CACHE"
            return Program("qemu", ">=3.0.0,<3.0.1", (reason,))
        return Program(
            "unknown", "", ("oldstyle: qemu-nbd up to 3.0 without -x, nbdkit -o, others",)
        )
    return Program("unknown", "", ("no INFO and GO: qemu before 2.10, nbd-server before 3.15",))
