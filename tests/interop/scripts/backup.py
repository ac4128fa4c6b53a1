"""What a backup that asks as virtnbdbackup does would save: backup.py URI [BITMAP].

It asks for full lengths, takes the end of one context's answer for the end of all, and strings the answers
together. Prints the first answer of each context (extents, bytes), and how much is allocated (and dirty).
"""

import json
import signal
import sys
from typing import Any

import nbd

ALLOCATION = "base:allocation"
MOST = 4294967295

uri, bitmap = sys.argv[1], (sys.argv[2:] or [""])[0]
contexts = [ALLOCATION, bitmap] if bitmap else [ALLOCATION]
Extents = list[tuple[int, int]]

signal.alarm(500)
h = nbd.NBD()
for context in contexts:
    h.add_meta_context(context)
h.connect_uri(uri)
size, at = h.get_size(), 0
told: dict[str, Extents] = {context: [] for context in contexts}
first: dict[str, tuple[int, int]] = {}
while at < size:
    part: dict[str, Extents] = {}

    def extents(name: str, _offset: int, entries: list[int], _error: Any) -> int:
        part[name] = list(zip(entries[::2], entries[1::2], strict=True))  # noqa: B023 # called before it goes on
        return 0

    h.block_status(min(size - at, MOST), at, extents)
    for name, each in part.items():
        first.setdefault(name, (len(each), sum(length for length, _ in each)))
        told[name] += each
    at += sum(length for length, _ in part[contexts[-1]])
h.shutdown()


def ranges(name: str, flags: int) -> Extents:
    at, found = 0, []
    for length, status in told[name]:
        if status == flags:
            found.append((at, at + length))
        at += length
    return found


allocated = ranges(ALLOCATION, 0)
dirty = ranges(bitmap, 1) if bitmap else [(0, size)]
saved = [
    (max(start, left), min(end, right))
    for start, end in allocated
    for left, right in dirty
    if max(start, left) < min(end, right)
]
print(json.dumps({"first": first, "saved": sum(end - start for start, end in saved)}))
