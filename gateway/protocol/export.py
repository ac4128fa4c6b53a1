"""What an upstream has, what we promise one client of it, and the two steps between them.

An *export* is what the upstream said when it was opened, after the quirks repaired it. A *view* is an export as
policies see it: `view_of` gives the first one, which is all that the gateway can do with that upstream, and
each policy makes another of it. An *offer* is what one client is told of the last view, in its own dialect. The
data plane holds that client to the same offer, and refuses what it does not promise.

The flag algebra, one rule a bit (nbd-reference: "what to advertise downstream"; "Transmission flags" in
proto.md). No view has what neither the upstream can do nor the gateway in its place:

    HAS_FLAGS          always
    READ_ONLY, FLUSH, ROTATIONAL, CAN_MULTI_CONN, CACHE   as the upstream
    FUA                if the upstream has FUA, or FLUSH, which follows the write then
    TRIM               as the upstream
    WRITE_ZEROES       always: zeros can be written
    FAST_ZERO          as the upstream, but never without its own WRITE_ZEROES
    DF                 always: a reply can be put together
    BLOCK_STATUS_PAYLOAD   always: an answer can be cut down
    any other bit      never: we cannot know what it would promise

What contradicts another flag is not offered: no TRIM, WRITE_ZEROES or FAST_ZERO with READ_ONLY, no FAST_ZERO
without WRITE_ZEROES, no DF without structured replies, no BLOCK_STATUS_PAYLOAD without extended headers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import or_

from gateway.wire import limits
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import Framing, framing_of
from gateway.wire.handshake import BlockSizes, MetaContext

UNRESTRICTED_MAXIMUM = 0xFFFFFFFF
"""INFO_BLOCK_SIZE's maximum for "no limit"."""

LARGEST_MINIMUM = 64 * limits.KIB
SMALLEST_PREFERRED = 512


@dataclass(frozen=True, slots=True)
class Export:
    """An upstream's export as it stands on one link."""

    size: int
    """Bytes."""
    flags: int
    """Transmission flags."""
    block_sizes: BlockSizes | None = None
    """None if the upstream did not say, or said what makes no sense."""
    name: str | None = None
    """The canonical name, if the upstream gives one."""
    description: str | None = None
    structured: bool = False
    """The link speaks structured replies."""
    contexts: tuple[MetaContext, ...] = ()
    """The contexts selected on the link, with the upstream's ids."""
    extended: bool = False
    """The link has extended headers, which include structured replies."""
    unstated_minimum: int = 1
    """The minimum block, in bytes, of an upstream that told none: see the quirk `qemu-sectors`. If the tail of
    the export is shorter, clients can still reach it; with a minimum that was told they cannot."""
    any_alignment: bool = False
    """The upstream sees to requests that are not aligned to its blocks: it is a gateway, as we are."""

    @property
    def minimum(self) -> int:
        """Give what offsets and lengths that go upstream are multiples of, in bytes, except at the end of the
        export.
        """
        return 1 if self.any_alignment else self.stated_minimum

    @property
    def stated_minimum(self) -> int:
        """Give the minimum block of the upstream, in bytes."""
        return self.block_sizes.minimum if self.block_sizes else self.unstated_minimum

    @property
    def framing(self) -> Framing:
        """Give the link's framing."""
        return framing_of(structured=self.structured, extended=self.extended)

    @property
    def can_flush(self) -> bool:
        """It can be written to, and has FLUSH to make that durable."""
        return bool(self.flags & Flag.SEND_FLUSH and not self.flags & Flag.READ_ONLY)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one client is promised about one export."""

    size: int
    flags: int
    block_sizes: BlockSizes
    structured: bool
    contexts: tuple[MetaContext, ...] = ()
    """The contexts selected, with the ids that the client knows."""
    longest_payload: int = limits.MAX_REQUEST_BYTES
    """What a READ or WRITE may carry at most, in bytes. `block_sizes` may say something else."""
    alignment: int = 1
    """What offsets and lengths have to be multiples of. `block_sizes` may say something else."""
    extended: bool = False
    """The client has extended headers, which include structured replies."""
    base: int = 0
    """Where it begins in the upstream's export, in bytes."""
    one_reply_a_record: bool = False
    """Over TLS, no two replies go into one record."""

    @property
    def framing(self) -> Framing:
        """Give the client's framing."""
        return framing_of(structured=self.structured, extended=self.extended)

    def allows(self, flag: Flag) -> bool:
        """Say whether a transmission flag is promised."""
        return bool(self.flags & int(flag))  # a number and a member: forty times as much


def together(flags: Iterable[int]) -> int:
    """Give several flags as one number; each may be several already."""
    return reduce(or_, flags, 0)


@dataclass(frozen=True, slots=True)
class View:
    """An export as a policy sees it, and as it shows it to the policy that stands nearer to the client."""

    size: int
    """Bytes."""
    flags: int
    """Transmission flags."""
    block_sizes: BlockSizes
    any_alignment: bool = True
    """Requests that are not aligned to the minimum block are served all the same."""
    base: int = 0
    """Where it begins in the upstream's export, in bytes."""
    description: str | None = None
    """What a client is told in words."""
    contexts: frozenset[str] = frozenset()
    """Names of the meta contexts that can be had."""
    reaches_tail: bool = False
    """The upstream did not tell the minimum block (see `Export.unstated_minimum`). If the size is no multiple
    of it, clients are told 1."""

    def allows(self, flag: Flag) -> bool:
        """Say whether a transmission flag is there."""
        return bool(self.flags & int(flag))  # a number and a member: forty times as much

    def without(self, *flags: Flag) -> View:
        """Give the view without transmission flags."""
        return replace(self, flags=self.flags & ~together(flags))

    def having(self, *flags: Flag) -> View:
        """Give the view with transmission flags. READ_ONLY takes something from a client, others promise it
        something.
        """
        return replace(self, flags=self.flags | together(flags))

    def window(self, offset: int, size: int) -> View:
        """Give the part of `size` bytes at `offset`. Raises ValueError if there is no such part."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at {offset} are not inside {self.size}")
        return replace(self, base=self.base + offset, size=size)


_AS_UPSTREAM = (
    Flag.READ_ONLY
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.ROTATIONAL
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.CAN_MULTI_CONN
    | Flag.SEND_CACHE
    | Flag.SEND_FAST_ZERO
)
_WRITE_CLASS = Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO


def view_of(
    export: Export, *, any_alignment: bool = True, made_up: frozenset[str] = frozenset()
) -> View:
    """Give all that the gateway can do with an upstream's export: the table at the head of this module.

    `any_alignment`: requests that are not aligned to the upstream's blocks are served all the same.
    `made_up`: contexts that are answered here if the link does not have them.
    """
    sizes = offered_block_sizes(export.block_sizes)
    return View(
        export.size,
        _viewed_flags(export.flags),
        BlockSizes(export.stated_minimum, sizes.preferred, sizes.maximum),
        any_alignment,
        reaches_tail=export.block_sizes is None,
        description=export.description,
        contexts=made_up.union(context.name for context in export.contexts),
    )


@lru_cache(maxsize=256)  # in a list of a thousand exports they are mostly the same
def _viewed_flags(upstream: int) -> int:
    flags = Flag(upstream & _AS_UPSTREAM) | Flag.HAS_FLAGS
    if not flags & Flag.SEND_WRITE_ZEROES:
        flags &= ~Flag.SEND_FAST_ZERO
    flags |= Flag.SEND_WRITE_ZEROES | Flag.SEND_DF | Flag.BLOCK_STATUS_PAYLOAD
    if flags & Flag.SEND_FLUSH:
        flags |= Flag.SEND_FUA
    return int(flags)


def offer(
    view: View,
    *,
    structured: bool,
    extended: bool = False,
    selected: tuple[MetaContext, ...] = (),
) -> Offer:
    """Decide what a client is promised. `structured`, `extended`: what the client negotiated. `selected`: the
    contexts that it selected, with the ids that it was given; those that the view does not have are left out.
    """
    sizes = view.block_sizes
    if view.reaches_tail and view.size % sizes.minimum:
        sizes = replace(sizes, minimum=1)
    return Offer(
        usable_size(view.size, sizes),
        offered_flags(view.flags, structured=structured, extended=extended),
        sizes,
        structured,
        tuple(context for context in selected if context.name in view.contexts),
        alignment=1 if view.any_alignment else sizes.minimum,
        extended=extended,
        base=view.base,
    )


@lru_cache(maxsize=256)
def offered_flags(flags: int, *, structured: bool, extended: bool = False) -> int:
    """Give the transmission flags of an offer: those of the view that contradict no other."""
    offered = Flag(flags)
    if not offered & Flag.SEND_WRITE_ZEROES:
        offered &= ~Flag.SEND_FAST_ZERO
    if offered & Flag.READ_ONLY:
        offered &= ~_WRITE_CLASS
    if not structured and not extended:
        offered &= ~Flag.SEND_DF
    if not extended:
        offered &= ~Flag.BLOCK_STATUS_PAYLOAD
    return int(offered)


def offered_block_sizes(upstream: BlockSizes | None) -> BlockSizes:
    """Give the block sizes of an offer: the upstream's, or proto.md's defaults if it has none. They never allow
    what would be refused.
    """
    if upstream is not None:
        most = min(upstream.maximum, limits.MAX_REQUEST_BYTES)
        return replace(upstream, preferred=min(upstream.preferred, most), maximum=most)
    return BlockSizes(
        limits.DEFAULT_MINIMUM_BLOCK,
        limits.DEFAULT_PREFERRED_BLOCK,
        limits.DEFAULT_MAXIMUM_PAYLOAD,
    )


def longest_payload(sizes: BlockSizes | None) -> int:
    """Give the longest payload, in bytes, that a server with these block sizes takes. If it told none, or no
    limit, this is what every server takes.
    """
    if sizes is None or sizes.maximum == UNRESTRICTED_MAXIMUM:
        return limits.MAX_REQUEST_BYTES
    return min(sizes.maximum, limits.MAX_REQUEST_BYTES)


def sane_block_sizes(said: BlockSizes | None) -> BlockSizes | None:
    """Give what an upstream said of block sizes, or None if it makes no sense.

    Like libnbd (lib/flags.c) we ignore improper sizes. We must not pass them on, for a qemu client hangs up
    over them ("Size constraints").
    """
    if said is None:
        return None
    minimum, preferred, maximum = said.minimum, said.preferred, said.maximum
    proper = (
        _is_power_of_two(minimum)
        and minimum <= LARGEST_MINIMUM
        and _is_power_of_two(preferred)
        and preferred >= max(minimum, SMALLEST_PREFERRED)
        and maximum >= preferred
        and (maximum == UNRESTRICTED_MAXIMUM or maximum % minimum == 0)
    )
    return said if proper else None


NO_PROMISE = Flag.READ_ONLY | Flag.ROTATIONAL
"""Flags whose loss takes nothing from a client."""


def lacks(was: Export | Offer, now: Export | Offer) -> list[str]:
    """Say which of its flags and contexts an export has no longer, and whether it has become read-only."""
    found = [f"no {flag.name}" for flag in Flag(was.flags & ~now.flags & ~NO_PROMISE)]
    if now.flags & ~was.flags & Flag.READ_ONLY:
        found.append("it is read-only")
    names = {context.name for context in now.contexts}
    return found + [f"no {each.name}" for each in was.contexts if each.name not in names]


def usable_size(size: int, sizes: BlockSizes | None) -> int:
    """Give how many bytes of an export a client can reach: a tail shorter than the minimum block cannot
    be addressed, and qemu refuses an export that has one (Q-C10).
    """
    return size - size % sizes.minimum if sizes else size


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def repaired(export: Export, *, clear: int, add: int, unstated_minimum: int) -> Export:
    """Give the export without the flags that quirks clear, with those that they add, and with the minimum block
    that they say.
    """
    flags = export.flags & ~clear | add
    if (flags, unstated_minimum) == (export.flags, export.unstated_minimum):
        return export
    return replace(export, flags=flags, unstated_minimum=unstated_minimum)
