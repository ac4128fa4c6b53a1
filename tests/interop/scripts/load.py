"""Keep 16 reads in flight until the connection dies, or SIGTERM comes: load.py URI.

Prints that it has begun, and in the end how many were answered well, and the errno of the others. That it ends
is the point.
"""

import collections
import json
import signal
import sys
from typing import Any

import nbd

LEAST = 16

uri = sys.argv[1]
signal.alarm(500)
h = nbd.NBD()
h.connect_uri(uri)
buffers = [nbd.Buffer(65536) for _ in range(16)]
free = list(range(16))
good = 0
bad: collections.Counter[int] = collections.Counter()
told_to_end = False


def end(*_: object) -> None:
    global told_to_end
    told_to_end = True


def goes_on() -> bool:
    return not told_to_end or good < LEAST


signal.signal(signal.SIGTERM, end)


def completed(slot: int, error: Any) -> int:
    global good
    free.append(slot)
    if error.value:
        bad[error.value] += 1
        error.value = 0
    else:
        good += 1
        if good == LEAST:
            print("begun", flush=True)
    return 1


died = False
try:
    while not bad and (goes_on() or len(free) < 16):
        while free and goes_on():
            slot = free.pop()
            h.aio_pread(buffers[slot], slot << 16, completion=lambda e, s=slot: completed(s, e))
        h.poll(1000)
    # After the first error: the rest must come too, and then the end.
    while len(free) < 16:
        h.poll(-1)
    h.pread(512, 0)
except nbd.Error:
    died = True
print(json.dumps({"good": good, "bad": dict(bad), "unanswered": 16 - len(free), "died": died}))
