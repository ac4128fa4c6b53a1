"""What peers get wrong and the core copes with for everyone, without recognising anybody.

Numbers are those that comments and tests of this project use: S qemu's server, C its client, N nbd-server, L
nbd-client and the kernel, K nbdkit, B libnbd. `tests/quirks/test_everywhere.py` names a test for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.quirks import Proof, read, seen, told


@dataclass(frozen=True, slots=True)
class Known:
    """One oddity."""

    number: str
    peer: str
    does: str
    here: str
    """What the gateway does, whoever it talks to."""
    proof: Proof


EVERYWHERE = (
    Known(
        "Q-S3",
        "qemu 3.0",
        "LIST_META_CONTEXT without a query forgets its dirty bitmaps",
        "it is asked for `qemu:` as well where no context of qemu's came",
        seen("qemu-nbd 3.0.0 with a dirty bitmap"),
    ),
    Known(
        "Q-S4",
        "qemu 3.0",
        "extents of length 0",
        "they are dropped, and equal neighbours merged",
        read("qemu 3.0.0, nbd/server.c; commit 6545916d52 mends it"),
    ),
    Known(
        "Q-S7",
        "qemu 2.10 to 3.1",
        "INFO without a request for block sizes is refused",
        "block sizes are always asked for, and the client's INFO is answered",
        read("qemu 3.0.0, nbd/server.c; seen of 7.2 and 10 whose blocks are larger than a byte"),
    ),
    Known(
        "Q-S8",
        "qemu 2.10 to 3.1",
        "a minimum block of 512 is told where 1 would do",
        "clients may send any alignment: parts of blocks are read, changed and written",
        read("qemu 3.0.0, nbd/server.c"),
    ),
    Known(
        "Q-S9",
        "qemu from 2.5",
        "the size of a raw image is rounded up to a multiple of 512; the tail reads right, zeros behind it",
        "the size is passed on as it is told",
        seen("qemu-nbd 2.5.0 to 3.1.0, 7.2 and 10"),
    ),
    Known(
        "Q-S10",
        "qemu 2.12 to 4.0",
        "extents beyond the end",
        "they are cut at the end",
        told("qemu's client works around it, commits 737d3f5244 and 75d34eb98c"),
    ),
    Known(
        "Q-S11",
        "qemu-nbd up to 3.0 without -x",
        "the oldstyle greeting",
        "it is understood",
        seen("qemu-nbd 3.0.0 without -x"),
    ),
    Known(
        "Q-S12",
        "qemu from 2.12",
        "every request that is not legal gets EINVAL",
        "requests are judged here: EPERM on a read-only export, ENOSPC for a WRITE past the end",
        seen("qemu-nbd 7.2 and 10: READ and WRITE past the end, WRITE to a read-only export"),
    ),
    Known(
        "Q-S13",
        "all qemu",
        "a WRITE over the maximum ends the connection",
        "it is cut into pieces of the maximum",
        seen("qemu-nbd 7.2 and 10: a WRITE of 32 MiB and a byte"),
    ),
    Known(
        "Q-S14",
        "all qemu",
        "DISC with requests in flight loses their replies",
        "DISC is sent when everything is answered",
        read("qemu 3.0.0, nbd/server.c"),
    ),
    Known(
        "Q-S15",
        "qemu from 2.11",
        "an error in the middle of a READ closes the connection",
        "what is in flight gets an error, never made-up data",
        seen("qemu-nbd 7.2 and 10 over blkdebug, which fails READs"),
    ),
    Known(
        "Q-S16",
        "all qemu",
        "FUA on READ flushes",
        "it means nothing there and is not sent on",
        read("qemu 3.0.0, nbd/server.c"),
    ),
    Known(
        "Q-S18",
        "qemu 3.0, nbd-server (Q-N15)",
        "TRIM and WRITE_ZEROES are offered of read-only exports",
        "they are not offered with READ_ONLY",
        seen("nbd-server 3.24 and 3.26, of WRITE_ZEROES; of qemu 3.0.0 read in nbd/server.c"),
    ),
    Known(
        "Q-S19",
        "qemu up to 4.1",
        "names over 255 bytes end the connection",
        "the client is told so; `upstream-name` gives a short one a long name",
        read("qemu 3.0.0, nbd/server.c"),
    ),
    Known(
        "Q-S20",
        "qemu in 2.10's development",
        "the answer to EXPORT_NAME is 2 bytes too long without NO_ZEROES",
        "NO_ZEROES is always taken, and GO preferred",
        told("qemu's commit 5f66d060db"),
    ),
    Known(
        "Q-S21",
        "qemu 2.10.0",
        "the canonical name is empty",
        "that is taken for none: the name that was asked for stands",
        told("qemu's commit 46321d6b5f"),
    ),
    Known(
        "Q-S22",
        "qemu 2.11-rc",
        "a READ of nothing is answered with data",
        "it is answered here",
        told("qemu's commit ef8c887ee0"),
    ),
    Known(
        "Q-S23",
        "qemu before 2.6, nbd-server before 3.15 (Q-N8)",
        "an unknown option ends the connection, or its data is taken for the next option",
        "a ladder: the same is tried with less, down to EXPORT_NAME alone",
        told("qemu's commit 8ecaeae822, nbd's commits 381eca1 and 2ab3a2d"),
    ),
    Known(
        "Q-S30",
        "qemu from 9.1",
        "a negotiation over 10 s is hung up on",
        "it connects late, and again if the client has taken its time",
        seen("qemu-nbd 10, left alone behind its greeting"),
    ),
    Known(
        "Q-S32",
        "qemu from 8.2",
        "BLOCK_STATUS_PAYLOAD is told in INFO and, without contexts, not in GO",
        "a GO behind an INFO is told the same",
        seen("qemu-nbd 10"),
    ),
    Known(
        "Q-C1",
        "qemu's client from 8.2",
        "PAYLOAD_LEN is missing from its WRITEs",
        "they are taken, and sent on with it",
        seen("qemu-io 10 with extended headers"),
    ),
    Known(
        "Q-C3",
        "qemu's client",
        "an error text over 1,000 bytes ends its connection",
        "texts are cut to 900",
        seen("qemu-io 7.2 and 10: a text of 1,200 bytes ends it, one of 900 does not"),
    ),
    Known(
        "Q-C5",
        "qemu's client 2.12 to 3.1 (and Q-C7)",
        "an answer to REQ_ONE of more than one extent, or longer than was asked, ends its connection",
        "it gets exactly one, cut to what was asked",
        read("qemu 3.0.0, block/nbd-client.c"),
    ),
    Known(
        "Q-C6",
        "qemu's client 2.12 to 3.1",
        "a simple error to BLOCK_STATUS ends its connection",
        "it is always told in a chunk",
        told("qemu's commits ebd82cd872 and b29f3a3d2a"),
    ),
    Known(
        "Q-C8",
        "qemu's client 3.0",
        "a bitmap that it asked for and did not get reads as all clean",
        "what is hidden is refused, not left out",
        told("qemu's commit 47829c4079"),
    ),
    Known(
        "Q-C10",
        "qemu's client from 4.0",
        "a size that is no multiple of the minimum block is refused",
        "such a size is rounded down",
        told(
            "qemu's commit 3add3ab782; 7.2 and 10 took such a size that came before the block sizes"
        ),
    ),
    Known(
        "Q-C13",
        "qemu up to 2.5, nbd-client before 3.10 (Q-L4)",
        "the client knows only the oldstyle greeting",
        'a listener with `style = "oldstyle"`',
        told("nbdkit's docs/nbdkit-protocol.pod"),
    ),
    Known(
        "Q-C17",
        "clients that fall back from GO",
        "a name that LIST does not have is taken for missing",
        "names that the configuration spells out are always listed",
        read("qemu 3.0.0, nbd/client.c"),
    ),
    Known(
        "Q-N1",
        "nbd-server 3.15 to 3.27",
        "WRITE_ZEROES of more than 64 MiB zeroes the first 64 MiB and says success",
        "pieces of 32 MiB, to every server without extended headers (nbdkit 1.38 to 1.44 as well: Q-K2)",
        seen("nbd-server 3.24: a WRITE_ZEROES of 128 MiB"),
    ),
    Known(
        "Q-N3",
        "nbd-server from 3.25",
        "a simple error to a READ under structured replies",
        "it is taken, and told as a chunk",
        seen("nbd-server 3.26: a READ past the end"),
    ),
    Known(
        "Q-N5",
        "nbd-server",
        "ABORT is not answered",
        "the answer is not waited for",
        seen("nbd-server 3.24 and 3.26"),
    ),
    Known(
        "Q-N12",
        "nbd-server before 3.13",
        "data behind an error",
        "a server out of step ends its own client's session and nobody else's",
        told("nbd's commit e6c6fb3"),
    ),
    Known(
        "Q-N13",
        "nbd-server before 3.11",
        "the host's own error numbers",
        "they are translated to the protocol's",
        told("nbd's commit 9ddd6c2"),
    ),
    Known(
        "Q-N19",
        "nbd-server in 3.14's development",
        "an error text of 4 GiB",
        "option replies over the limit end the negotiation",
        told("nbd's commit 6201b7d"),
    ),
    Known(
        "Q-N21",
        "nbd-server",
        "INFO says size 0",
        "GO is believed, and its link kept for the client's GO",
        seen("nbd-server 3.24 and 3.26"),
    ),
    Known(
        "Q-L1",
        "nbd-client 3.1 to 3.8",
        "NO_ZEROES is taken for READ_ONLY",
        "a listener with `handshake-flags` that leave it out",
        told("abligh/gonbdserver#4, NetworkBlockDevice/nbd#43, qemu's commit 7423f41782"),
    ),
    Known(
        "Q-L3",
        "nbd-client from 3.16",
        "GO without asking for block sizes, and ERR_BLOCK_SIZE_REQD is fatal",
        '`unaligned = "rmw"`, the default, refuses nobody',
        read("nbd-client.c of nbd 3.27"),
    ),
    Known(
        "Q-L8",
        "the kernel",
        "TRIM of almost 4 GiB",
        "it is taken, and cut for the server",
        read("linux, drivers/block/nbd.c"),
    ),
    Known(
        "Q-K7",
        "nbdkit before 1.15.4",
        "a second SET_META_CONTEXT on a connection is wrong",
        "there is never a second on one connection",
        told("nbdkit's commits 7ed83d14 and faf614e3"),
    ),
    Known(
        "Q-K8",
        "nbdkit",
        "a request over the maximum gets ENOMEM",
        "requests are judged here",
        seen("nbdkit 1.32 and 1.42: a READ of more than 64 MiB"),
    ),
    Known(
        "Q-K9",
        "nbdkit",
        "a second LIST is refused",
        "each LIST has a connection of its own",
        seen("nbdkit 1.32 and 1.42"),
    ),
    Known(
        "Q-K10",
        "nbdkit up to 1.33",
        "over TLS, the data of a WRITE that it refuses is read past TLS, and the connection is out of step",
        "what it would refuse is not sent",
        seen("nbdkit 1.32: a WRITE past the end, over TLS"),
    ),
    Known(
        "Q-K11",
        "nbdkit before 1.44",
        "a BLOCK_STATUS of almost 4 GiB ends it",
        "no more than 2 GiB are asked for, of servers without extended headers",
        seen("nbdkit 1.32, memory plugin of 8 GiB: it ends with a failed assertion"),
    ),
    Known(
        "Q-B2",
        "libnbd before 1.3.12",
        "EXPORT_NAME's length is sent in the wrong byte order",
        "an option over the limit is hung up on instead of waited for",
        told("libnbd's commit 2731f9a"),
    ),
    Known(
        "Q-B3",
        "libnbd 1.4 to 1.7",
        "a GO without INFO_EXPORT crashes it",
        "it is always told",
        told("libnbd's commit fb4440d, CVE-2021-20286"),
    ),
)
"""All of them, by number."""
