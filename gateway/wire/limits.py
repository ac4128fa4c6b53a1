"""How much a peer may make us read, hold or wait for; each bound with its reason. A limit protects everybody
else's memory and time. No well-behaved peer may ever reach one: the precedents beside them are what the
programs of the field send and accept.
"""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MAX_STRING_BYTES = 4096
"""Longest export name, description, query or error text ("Values", proto.md: strings)."""

MAX_OPTION_BYTES = 64 * KIB
"""Longest option payload that we read. The longest that a client has a reason to send is a
SET_META_CONTEXT with a handful of names; nbdkit stopped at 4 KiB until 1.15.4 and at 64 KiB since,
qemu hangs up above 32 MiB. A thousand half-open connections hold 64 MiB at most."""

MAX_OPTIONS = 128
"""Options in one negotiation in which LIST has told no names; nbdkit allows 32."""

OPTIONS_PER_LISTED_NAME = 8
"""Further options for each name that LIST told. `qemu-nbd -L` asks INFO of each, and
LIST_META_CONTEXT up to twice; the rest is for whoever asks again without what was refused."""

SECONDS_PER_LISTED_NAME = 1
"""Further time for each name that LIST told: enough for many round trips to the other side of the world. It
bounds a client that goes on and on with cheap options."""

MAX_QUERIES = 256
"""Queries in one LIST_META_CONTEXT or SET_META_CONTEXT."""

MAX_OPTION_REPLY_BYTES = 64 * KIB
"""Longest option reply that we read from an upstream: two strings and a few words are far below it
(CVE-2017-2630, and Q-N19, an nbd-server that announced 4 GiB of error text)."""

MAX_OPTION_REPLIES = 4 * KIB
"""Replies to one option: a LIST of that many exports is the longest that makes sense, and with the longest
names and descriptions it takes 32 MiB."""

MAX_REQUEST_BYTES = 64 * MIB
"""Longest payload of a READ or WRITE: nbdkit's and libnbd's own bound."""

MAX_DRAIN_BYTES = 128 * MIB
"""Longest payload of a refused WRITE that we read and drop to stay in step, as nbdkit does. If it is longer, we
close the connection. Up to 32 MiB a client MUST NOT lose its connection ("Size constraints")."""

DEFAULT_MINIMUM_BLOCK = 1
DEFAULT_PREFERRED_BLOCK = 4096
DEFAULT_MAXIMUM_PAYLOAD = 32 * MIB
"""Block sizes where none were negotiated ("Size constraints")."""

MAX_SIZE_BYTES = 2**63 - 1
"""Largest export: clients see a larger size as negative (CVE-2023-5215)."""

WRITE_ZEROES_PIECE_BYTES = 32 * MIB
"""WRITE_ZEROES goes upstream in pieces of this size: nbd-server 3.15 to 3.27 (Q-N1) and nbdkit's file
plugin on NFS (Q-K2) zero no more than the first 64 MiB and report success."""

EFFECT_PIECE_BYTES = 1024 * MIB
"""TRIM and CACHE go upstream in pieces of this size if lengths have 32 bits. It is a power of two, so that
pieces are aligned to whatever blocks the server has."""

MAX_GAPS = 4 * KIB
"""How many separate ranges the chunks of one READ may have filled at a time. qemu sends them in order, so there
is one. Without a bound, a server could make us remember half as many as there are bytes."""

BLOCK_STATUS_BYTES = 2**31
"""Longest BLOCK_STATUS sent upstream: nbdkit before 1.44 asserts near 4 GiB (CVE-2025-47711), qemu 3.0
gives zero-length extents there (Q-S4). A shorter answer than asked is always legal."""

MAX_EXTENTS = 2**20
"""Extents in one BLOCK_STATUS chunk from an upstream ("Structured reply types": servers SHOULD stop
there)."""

MAX_STATUS_CHUNK_BYTES = 4 + 8 * MAX_EXTENTS
"""Longest BLOCK_STATUS chunk that is read."""

MAX_EXTENDED_STATUS_CHUNK_BYTES = 8 + 16 * MAX_EXTENTS
"""Longest BLOCK_STATUS_EXT chunk that is read."""

MAX_ERROR_CHUNK_BYTES = 14 + MAX_STRING_BYTES
"""Longest error chunk that is read: number, length, text, offset."""

ERROR_TEXT_BYTES = 900
"""Longest error text that is sent on: qemu closes the connection when an error chunk's payload exceeds
1,000 bytes (Q-C3)."""

NAME_IN_TEXT_CHARS = 80
"""How much of a peer's string we repeat in a message (CVE-2020-10761 was a name of 4,096)."""
