"""Commands longer than 32 bits can say: huge.py URI OPTIONS, which are JSON.

    data      offsets at which 64 KiB of data are written, in this order
    zero      start and length of what is then zeroed
    contexts  the meta contexts to ask for
    filters   lists of contexts: BLOCK_STATUS again, for these only

Without extended headers the same is done in pieces. What was asked in one command is asked in one if
it can be. Prints what was negotiated, what is at each offset of `data` afterwards, and the map: for
each context its extents as [offset, length, flags], equal neighbours joined; and the longest extent
that was told in one.
"""

import json
import signal
import sys
from typing import Any

import nbd

DATA = bytes(range(1, 256)) * 257 + b"\xff"
Map = dict[str, list[list[int]]]

uri, options = sys.argv[1], json.loads(sys.argv[2])
signal.alarm(500)
h = nbd.NBD()
h.set_request_extended_headers(True)
for name in options["contexts"]:
    h.add_meta_context(name)
h.connect_uri(uri)
size = h.get_size()
extended = h.get_extended_headers_negotiated()
longest = size if extended else 1 << 30


def status(position: int, contexts: list[str] | None) -> Map:
    """One BLOCK_STATUS of all that is left of the export, or of as much as can be asked for."""
    answer: Map = {}

    def told(context: str, at: int, entries: list[tuple[int, int]], _error: Any) -> int:
        rows = answer.setdefault(context, [])
        for length, flags in entries:
            assert length > 0, "an extent of no bytes"
            rows.append([at, length, flags])
            at += length
        return 0

    length = min(longest, size - position)
    if contexts is None:
        h.block_status_64(length, position, told)
    else:
        h.block_status_filter(length, position, contexts, told)
    expected = set(report["contexts"] if contexts is None else contexts)
    assert set(answer) == expected, f"asked for {expected}, told {set(answer)}"
    return answer


def walk(contexts: list[str] | None = None) -> Map:
    """The whole export's map. Answers may be short, and not equally so for all contexts."""
    found: Map = {}
    position = 0
    while position < size:
        answer = status(position, contexts)
        ends = [rows[-1][0] + rows[-1][1] for rows in answer.values()]
        assert position < min(ends) <= max(ends) <= size, f"at {position}: extents end at {ends}"
        for context, rows in answer.items():
            join(found.setdefault(context, []), rows, min(ends))
            longest_extent = max(length for _at, length, _flags in rows)
            report["longest_extent"] = max(report["longest_extent"], longest_extent)
        position = min(ends)
    return found


def join(joined: list[list[int]], rows: list[list[int]], end: int) -> None:
    """Add extents as far as `end`."""
    for at, length, flags in rows:
        length = min(length, end - at)
        if length <= 0:
            continue
        if joined and joined[-1][2] == flags:
            joined[-1][1] += length
        else:
            joined.append([at, length, flags])


report: dict[str, Any] = {"extended": extended, "longest_extent": 0}
for offset in options["data"]:
    h.pwrite(DATA, offset)
start, left = options["zero"]
while left:
    piece = min(left, longest)
    h.zero(piece, start)
    start, left = start + piece, left - piece
h.flush()

names = {DATA: "data", bytes(len(DATA)): "zero"}
report["contents"] = [
    names.get(bytes(h.pread(len(DATA), offset)), "neither") for offset in options["data"]
]
report["contexts"] = [name for name in options["contexts"] if h.can_meta_context(name)]
report["map"] = walk()
report["filter"] = h.can_block_status_payload()
report["filtered"] = [walk(wanted) for wanted in options["filters"] if report["filter"]]
h.shutdown()
print(json.dumps(report))
