"""How an embedded server behaves on the wire: knobs, and a table of servers that were seen to turn them so.

The defaults are the server that proto.md describes. A knob is what one real server does differently; where
nbd-reference.md lists it as a quirk, its number stands beside it. To add a server is to add an entry to
`PERSONALITIES`. Of a disk, only its size and whether it is read-only matter here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

from gateway.embedded.disk import ServedDisk
from gateway.protocol.export import Export, offered_flags, view_of
from gateway.protocol.server_role import ServerDialect
from gateway.wire import limits
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP, Errno, HandshakeFlag, Opt
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import BlockSizes

EVERYTHING = (
    Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_DF
    | Flag.CAN_MULTI_CONN
    | Flag.SEND_CACHE
    | Flag.SEND_FAST_ZERO
)
"""All that our disks can do, coherent connections among them."""

WITHOUT_EXTENDED_HEADERS = frozenset({Opt.EXTENDED_HEADERS})
META_OPTIONS = frozenset({Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT})
WITHOUT_STRUCTURED_REPLIES = WITHOUT_EXTENDED_HEADERS | META_OPTIONS | {Opt.STRUCTURED_REPLY}
EXPORT_NAME_ONLY = WITHOUT_STRUCTURED_REPLIES | {Opt.INFO, Opt.GO}
"""For `Personality.unsupported`, beside what no server of ours supports."""


ALL_SIZES = BlockSizes(
    limits.DEFAULT_MINIMUM_BLOCK, limits.DEFAULT_PREFERRED_BLOCK, limits.MAX_REQUEST_BYTES
)
"""What our disks take, which is anything."""


def proper_flags(disk: ServedDisk, structured: bool) -> int:
    """Give the transmission flags that proto.md allows for all that we can do."""
    read_only = Flag.READ_ONLY if disk.read_only else 0
    export = Export(disk.size, EVERYTHING | read_only, structured=True)
    return offered_flags(view_of(export).flags, structured=structured)


def lacking(*missing: Flag) -> Callable[[ServedDisk, bool], int]:
    """Give `Personality.flags` of a server that is proper but for what it lacks: `lacking(Flag.SEND_FUA)`.

    What needs a missing one goes with it: FAST_ZERO with WRITE_ZEROES.
    """
    gone = int(reduce(or_, missing, Flag(0)))
    if gone & Flag.SEND_WRITE_ZEROES:
        gone |= Flag.SEND_FAST_ZERO
    return lambda disk, structured: proper_flags(disk, structured) & ~gone


@dataclass(frozen=True, slots=True)
class Personality:
    """The knobs. `name` is for messages."""

    name: str

    # --- Handshake
    clients_at_once: float = math.inf
    """How many connections are served at a time. Another client is connected too, but hears nothing until one
    of them ends. So does qemu-nbd with `--shared`, which is 1 by default."""
    oldstyle: bool = False
    """Greet oldstyle: the default export (or the only one), and no options."""
    handshake_flags: int = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    """Without FIXED_NEWSTYLE only EXPORT_NAME is taken."""

    # --- Options
    unsupported: frozenset[int] = frozenset()
    """Options that are answered ERR_UNSUP, beside those that no server of ours has."""
    leaves_payload: bool = False
    """The data of unsupported options is not consumed (Q-N8)."""
    closes_when_unsupported: bool = False
    """An option that is not supported ends the connection, without an answer (Q-S23)."""
    most_options: int | None = None
    """How many options are answered on one connection, and as many again for each export that LIST has told on
    it. Then the server closes, as nbdkit does at 32."""
    acknowledges_abort: bool = True
    """False: ABORT just closes (Q-N5)."""
    longest_name_bytes: int = limits.MAX_STRING_BYTES
    """Longer export names are refused with ERR_INVALID, or by hanging up (Q-S19)."""

    # --- What is told of an export
    size_multiple: int = 1
    """The disk of `legacy:` is rounded up to a multiple of it, as qemu-nbd does with an image (Q-S9)."""
    offset_bytes: int = 0
    """The export is what lies behind so many bytes of the disk (`--offset`); holes of structured READs, and
    `base:allocation`, are looked up without adding them (Q-S6)."""
    only_info_export: bool = False
    """INFO and GO tell INFO_EXPORT and nothing else, whatever was asked for (Q-N16)."""
    tells_names: bool = True
    """A client that asks for the export's name (INFO_NAME) is told one."""
    info_size_zero: bool = False
    """INFO says size 0 (Q-N21)."""
    flags: Callable[[ServedDisk, bool], int] = proper_flags
    """Transmission flags, of the disk and of whether structured replies were negotiated; see `lacking`."""
    extended_flags: int = Flag.BLOCK_STATUS_PAYLOAD
    """Transmission flags that extended headers add, in a GO only with contexts (Q-S32); 0: BLOCK_STATUS takes
    no payload."""
    block_sizes: BlockSizes | None = ALL_SIZES
    """What a client is told that asks for block sizes; None: nothing."""
    block_sizes_unasked: BlockSizes | None = None
    """What a GO is told that did not ask; None: nothing."""
    insists_on_block_sizes: bool = False
    """An INFO that did not ask for them is refused with ERR_BLOCK_SIZE_REQD, after it was told everything
    (Q-S7)."""

    # --- Meta contexts
    contexts: tuple[str, ...] = (BASE_ALLOCATION,)
    """All there are; each is `base:allocation` or begins with `qemu:dirty-bitmap:`."""
    contexts_unasked: tuple[str, ...] | None = None
    """What LIST_META_CONTEXT without a query gives; None: all (Q-S3)."""
    single_extent: bool = False
    """`base:allocation` is told in one extent, REQ_ONE or not (Q-S5)."""
    empty_extents: bool = False
    """Between two extents stands one of length 0, unless REQ_ONE (Q-S4)."""

    # --- Commands
    takes_unoffered: int = 0
    """Transmission flags whose commands are served although the flag is not told."""
    enforced_minimum: int | None = None
    """What offsets and lengths of every command must be multiples of; None: what the block sizes say."""
    enforced_maximum: int | None = None
    """The longest READ and WRITE, in bytes, where it is not what the block sizes say (Q-S24)."""
    zeroes_at_most: int | None = None
    """WRITE_ZEROES zeroes so many bytes at most, and says success (Q-N1)."""
    counts_in: int = 1
    """Offset and length of a READ or WRITE are rounded down to multiples of it, and the server says success
    (the quirk `qemu-sectors`)."""
    trims_blocks_of: int = 1
    """A TRIM is rounded outwards to blocks of so many bytes, which read as zeros then (Q-S25)."""
    only_error: Errno | None = None
    """The error for every request that is not legal; None: each has its own (Q-S12)."""
    raw_errors: bool = False
    """The error with which a disk fails is sent as it is, even if it is none of proto.md's, or none for this
    command."""
    only_chunks: bool = True
    """With structured replies, every reply is structured; False: only one with data or an error's text."""
    sparse_read_bytes: int = 64 * limits.KIB
    """Shortest READ whose holes are told as holes: asking for them costs, sending a few zeros does not."""
    cache_answers_data: bool = False
    """With structured replies, CACHE is answered like READ (Q-S2)."""
    closes_after_long_write: bool = False
    """A WRITE over the maximum is refused and the connection closed, instead of its data skipped (Q-S13)."""
    one_request_a_record: bool = False
    """Over TLS, a request is looked for in the socket: what else was in the record of the last one is found
    when another has come (the quirk `qemu-tls-records`)."""
    incoherent_connections: bool = False
    """Each connection has a cache of its own: written through at FLUSH, FUA and the end, refreshed at
    FLUSH. Whoever believes CAN_MULTI_CONN then reads old data. No real server was seen that does this and sets
    the flag: it is the worst that bit 8 of qemu 3.0.0 may mean (Q-S1)."""

    own_disks: bool = False
    """Each connection has a disk of its own, which begins as the export is, and is gone with it:
    copy-on-write."""

    @property
    def dialect(self) -> ServerDialect:
        """Give what our negotiation has knobs for."""
        always = ServerDialect().unsupported
        return ServerDialect(
            handshake_flags=self.handshake_flags,
            unsupported=always | self.unsupported,
            announce_block_sizes=True,  # `manners` holds back what is not told
        )

    def told_size(self, disk: ServedDisk) -> int:
        """Give the size that is told."""
        return disk.size - self.offset_bytes

    def image_size(self, size_bytes: int) -> int:
        """Give the size that an image of `size_bytes` has here."""
        return -(-size_bytes // self.size_multiple) * self.size_multiple

    def told_block_sizes(self, *, go: bool, asked: bool) -> BlockSizes | None:
        """Give the block sizes that an INFO or GO is told."""
        return self.block_sizes if asked or not go else self.block_sizes_unasked


def _flags_of_qemu_3_0(disk: ServedDisk, structured: bool) -> int:
    # nbd_negotiate's `myflags` is a constant, TRIM and WRITE_ZEROES with READ_ONLY included (Q-S18); bit 8 is
    # set where bit 10 was meant (Q-S1).
    flags = (
        Flag.HAS_FLAGS
        | Flag.SEND_TRIM
        | Flag.SEND_FLUSH
        | Flag.SEND_FUA
        | Flag.SEND_WRITE_ZEROES
        | Flag.CAN_MULTI_CONN
    )
    if disk.read_only:
        flags |= Flag.READ_ONLY
    if structured:
        flags |= Flag.SEND_DF
    return flags


PLAIN = Personality("plain")

QEMU_3_0 = Personality(
    "qemu-3.0",
    unsupported=WITHOUT_EXTENDED_HEADERS,
    longest_name_bytes=256,
    size_multiple=512,
    flags=_flags_of_qemu_3_0,
    # It tells 512 to whoever asks and to every INFO, and 1 to a GO that did not ask. 1 is what works (Q-S8).
    block_sizes=BlockSizes(512, 4096, 32 * limits.MIB),
    block_sizes_unasked=BlockSizes(1, 4096, 32 * limits.MIB),
    enforced_minimum=1,
    insists_on_block_sizes=True,
    contexts=(BASE_ALLOCATION, DIRTY_BITMAP + "bitmap0"),
    contexts_unasked=(BASE_ALLOCATION,),
    single_extent=True,
    takes_unoffered=Flag.SEND_CACHE,
    only_error=Errno.EINVAL,
    sparse_read_bytes=1,
    cache_answers_data=True,
    closes_after_long_write=True,
)
"""`qemu-nbd -t -e 0 -x ""`: for any number of clients, who all see one disk."""

QEMU_3_0_ALONE = replace(QEMU_3_0, name="qemu-3.0-alone", clients_at_once=1)
"""The same without `-e`, which is 1 then."""

QEMU_3_0_OFFSET = replace(QEMU_3_0, name="qemu-3.0-offset", offset_bytes=limits.MIB)
"""With `--offset`, to where the first partition of most disks begins."""

QEMU_3_0_INCOHERENT = replace(QEMU_3_0, name="qemu-3.0-incoherent", incoherent_connections=True)
"""The worst case, which was not seen: connections of which one does not see what another has written."""


def _constantly(*flags: Flag) -> Callable[[ServedDisk, bool], int]:
    """Give `Personality.flags` of a server that says these of every export, and READ_ONLY where it is."""
    always = Flag.HAS_FLAGS | reduce(or_, flags, Flag(0))
    return lambda disk, structured: int(always | (Flag.READ_ONLY if disk.read_only else 0))


_OLD_FLAGS = (Flag.SEND_FLUSH, Flag.SEND_FUA, Flag.SEND_TRIM)

QEMU_2_5 = Personality(
    "qemu-2.5",
    handshake_flags=HandshakeFlag.FIXED_NEWSTYLE,  # NO_ZEROES came with 2.8
    unsupported=EXPORT_NAME_ONLY,
    closes_when_unsupported=True,
    longest_name_bytes=255,
    size_multiple=512,
    flags=_constantly(*_OLD_FLAGS),
    block_sizes=None,
    contexts=(),
    only_error=Errno.EINVAL,
    enforced_maximum=limits.MIB,
    counts_in=512,
    trims_blocks_of=limits.KIB * 4,
    closes_after_long_write=True,
)

QEMU_2_8 = Personality(
    "qemu-2.8",
    unsupported=EXPORT_NAME_ONLY,
    longest_name_bytes=256,
    size_multiple=512,
    flags=_constantly(*_OLD_FLAGS, Flag.SEND_WRITE_ZEROES),
    block_sizes=None,
    contexts=(),
    only_error=Errno.EINVAL,
    enforced_maximum=32 * limits.MIB,
    closes_after_long_write=True,
    one_request_a_record=True,
)
"""`qemu-nbd -t -e 0 -x ""` of a time that knew no GO."""

NBD_SERVER_3_14 = Personality(
    "nbd-server-3.14",
    unsupported=EXPORT_NAME_ONLY,
    leaves_payload=True,
    acknowledges_abort=False,
    flags=_constantly(*_OLD_FLAGS),
    block_sizes=None,
    contexts=(),
)

NBD_SERVER_3_24 = Personality(
    "nbd-server-3.24",
    unsupported=WITHOUT_STRUCTURED_REPLIES,
    acknowledges_abort=False,
    only_info_export=True,
    info_size_zero=True,
    # WRITE_ZEROES of a read-only export as well (Q-N15).
    flags=_constantly(*_OLD_FLAGS, Flag.SEND_WRITE_ZEROES, Flag.CAN_MULTI_CONN),
    block_sizes=None,
    contexts=(),
    zeroes_at_most=64 * limits.MIB,
)

PERSONALITIES: dict[str, Personality] = {
    p.name: p
    for p in (
        PLAIN,
        QEMU_3_0,
        QEMU_3_0_ALONE,
        QEMU_3_0_OFFSET,
        QEMU_3_0_INCOHERENT,
        QEMU_2_5,
        QEMU_2_8,
        NBD_SERVER_3_14,
        NBD_SERVER_3_24,
    )
}
"""What `legacy:NAME` may name."""
