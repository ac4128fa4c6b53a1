"""What peers get wrong and the core copes with for everyone, without recognising anybody.

Numbers are those that comments and tests of this project use: S qemu's server, C its client, N nbd-server, L
nbd-client and the kernel, K nbdkit, B libnbd. `tests/quirks/test_everywhere.py` names a test for each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """One oddity."""

    number: str
    peer: str
    does: str
    here: str
    """What the gateway does, whoever it talks to."""


EVERYWHERE = (
    Known(
        "Q-S3",
        "qemu 3.0",
        "LIST_META_CONTEXT without a query forgets its dirty bitmaps",
        "it is asked for `qemu:` as well where no context of qemu's came",
    ),
    Known(
        "Q-S4", "qemu 3.0", "extents of length 0", "they are dropped, and equal neighbours merged"
    ),
    Known(
        "Q-S7",
        "qemu 2.10 to 3.1",
        "INFO without a request for block sizes is refused",
        "block sizes are always asked for, and the client's INFO is answered",
    ),
    Known(
        "Q-S8",
        "qemu 2.10 to 3.1",
        "a minimum block of 512 is told where 1 would do",
        "clients may send any alignment: parts of blocks are read, changed and written",
    ),
    Known(
        "Q-S9",
        "all qemu",
        "the size is rounded down to a multiple of 512, the tail of an image cannot be reached",
        "nothing can be done; `probe` says so",
    ),
    Known("Q-S10", "qemu 2.12 to 4.0", "extents beyond the end", "they are cut at the end"),
    Known("Q-S11", "qemu-nbd up to 3.0 without -x", "the oldstyle greeting", "it is understood"),
    Known(
        "Q-S12",
        "qemu from 2.12",
        "every request that is not legal gets EINVAL",
        "requests are judged here: EPERM on a read-only export, ENOSPC for a WRITE past the end",
    ),
    Known(
        "Q-S13",
        "all qemu",
        "a WRITE over the maximum ends the connection",
        "it is cut into pieces of the maximum",
    ),
    Known(
        "Q-S14",
        "all qemu",
        "DISC with requests in flight loses their replies",
        "DISC is sent when everything is answered",
    ),
    Known(
        "Q-S15",
        "qemu from 2.11",
        "an error in the middle of a READ closes the connection",
        "what is in flight gets an error, never made-up data",
    ),
    Known("Q-S16", "all qemu", "FUA on READ flushes", "it means nothing there and is not sent on"),
    Known(
        "Q-S18",
        "qemu 3.0, nbd-server (Q-N15)",
        "TRIM and WRITE_ZEROES are offered of read-only exports",
        "they are not offered with READ_ONLY",
    ),
    Known(
        "Q-S19",
        "qemu up to 4.1",
        "names over 255 bytes end the connection",
        "the client is told so; `upstream-name` gives a short one a long name",
    ),
    Known(
        "Q-S20",
        "qemu in 2.10's development",
        "the answer to EXPORT_NAME is 2 bytes too long without NO_ZEROES",
        "NO_ZEROES is always taken, and GO preferred",
    ),
    Known(
        "Q-S21", "qemu 2.10.0", "the canonical name is empty", "the name that was asked for is told"
    ),
    Known(
        "Q-S22", "qemu 2.11-rc", "a READ of nothing is answered with data", "it is answered here"
    ),
    Known(
        "Q-S23",
        "qemu before 2.6, nbd-server before 3.15 (Q-N8)",
        "an unknown option ends the connection, or its data is taken for the next option",
        "a ladder: the same is tried with less, down to EXPORT_NAME alone",
    ),
    Known(
        "Q-S30",
        "qemu from 9.1",
        "a negotiation over 10 s is hung up on",
        "it is dialled late, and anew where the client has taken its time",
    ),
    Known(
        "Q-S32",
        "qemu from 8.2",
        "BLOCK_STATUS_PAYLOAD is told in INFO and, without contexts, not in GO",
        "a GO behind an INFO is told the same",
    ),
    Known(
        "Q-C1",
        "qemu's client from 8.2",
        "PAYLOAD_LEN is missing from its WRITEs",
        "they are taken, and sent on with it",
    ),
    Known(
        "Q-C3",
        "qemu's client",
        "an error text over 1,000 bytes ends its connection",
        "texts are cut to 900",
    ),
    Known(
        "Q-C5",
        "qemu's client 2.12 to 3.1 (and Q-C7)",
        "an answer to REQ_ONE of more than one extent, or longer than was asked, ends its connection",
        "it gets exactly one, cut to what was asked",
    ),
    Known(
        "Q-C6",
        "qemu's client 2.12 to 3.1",
        "a simple error to BLOCK_STATUS ends its connection",
        "it is always told in a chunk",
    ),
    Known(
        "Q-C8",
        "qemu's client 3.0",
        "a bitmap that it asked for and did not get reads as all clean",
        "what is hidden is refused, not left out",
    ),
    Known(
        "Q-C10",
        "qemu's client from 4.0",
        "a size that is no multiple of the minimum block is refused",
        "such a size is rounded down",
    ),
    Known(
        "Q-C13",
        "qemu up to 2.5, nbd-client before 3.10 (Q-L4)",
        "the client knows only the oldstyle greeting",
        'a listener with `style = "oldstyle"`',
    ),
    Known(
        "Q-C17",
        "clients that fall back from GO",
        "a name that LIST does not have is taken for missing",
        "names that the configuration spells out are always listed",
    ),
    Known(
        "Q-N1",
        "nbd-server 3.15 to 3.27",
        "WRITE_ZEROES of more than 64 MiB zeroes the first 64 MiB and says success",
        "pieces of 32 MiB, to every server without extended headers (nbdkit 1.38 to 1.44 as well: Q-K2)",
    ),
    Known(
        "Q-N3",
        "nbd-server from 3.25",
        "a simple error to a READ under structured replies",
        "it is taken, and told as a chunk",
    ),
    Known("Q-N5", "nbd-server", "ABORT is not answered", "the answer is not waited for"),
    Known(
        "Q-N12",
        "nbd-server before 3.13",
        "data behind an error",
        "a server out of step ends its own client's session and nobody else's",
    ),
    Known(
        "Q-N13",
        "nbd-server before 3.11",
        "the host's own error numbers",
        "they are translated to the protocol's",
    ),
    Known(
        "Q-N19",
        "nbd-server in 3.14's development",
        "an error text of 4 GiB",
        "option replies over the limit end the negotiation",
    ),
    Known(
        "Q-N21",
        "nbd-server",
        "INFO says size 0",
        "GO is believed, and its link kept for the client's GO",
    ),
    Known(
        "Q-L1",
        "nbd-client 3.1 to 3.8",
        "NO_ZEROES is taken for READ_ONLY",
        "a listener with `handshake-flags` that leave it out",
    ),
    Known(
        "Q-L3",
        "nbd-client from 3.16",
        "GO without asking for block sizes, and ERR_BLOCK_SIZE_REQD is fatal",
        '`unaligned = "rmw"`, the default, refuses nobody',
    ),
    Known("Q-L8", "the kernel", "TRIM of almost 4 GiB", "it is taken, and cut for the server"),
    Known(
        "Q-K7",
        "nbdkit before 1.15.4",
        "a second SET_META_CONTEXT on a connection is wrong",
        "there is never a second on one connection",
    ),
    Known("Q-K8", "nbdkit", "a request over the maximum gets ENOMEM", "requests are judged here"),
    Known("Q-K9", "nbdkit", "a second LIST is refused", "each LIST has a connection of its own"),
    Known(
        "Q-K10",
        "nbdkit up to 1.33",
        "over TLS, the data of a WRITE that it refuses is read past TLS, and the connection is out of step",
        "what it would refuse is not sent",
    ),
    Known(
        "Q-K11",
        "nbdkit before 1.44",
        "a BLOCK_STATUS of almost 4 GiB ends it",
        "no more than 2 GiB are asked for, of servers without extended headers",
    ),
    Known(
        "Q-B2",
        "libnbd before 1.3.12",
        "EXPORT_NAME's length is sent in the wrong byte order",
        "an option over the limit is hung up on instead of waited for",
    ),
    Known("Q-B3", "libnbd 1.4 to 1.7", "a GO without INFO_EXPORT crashes it", "it is always told"),
)
"""All of them, by number."""
