"""Which errno each command gets: errors.py URI. Invalid requests are really sent."""

import json
import signal
import sys
from collections.abc import Callable

import nbd

signal.alarm(500)
h = nbd.NBD()
# libnbd would refuse most of these by itself.
h.set_strict_mode(0)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
size = h.get_size()
page = bytearray(4096)


def ignore(*_: object) -> int:
    return 0


trials: dict[str, Callable[[], object]] = {
    "read": lambda: h.pread(4096, 0),
    "write": lambda: h.pwrite(page, 0),
    "zero": lambda: h.zero(4096, 0),
    "trim": lambda: h.trim(4096, 0),
    "flush": lambda: h.flush(),
    "cache": lambda: h.cache(4096, 0),
    "status": lambda: h.block_status(4096, 0, ignore),
    "read past the end": lambda: h.pread(4096, size),
    "write past the end": lambda: h.pwrite(page, size),
    "zero past the end": lambda: h.zero(4096, size),
    "trim past the end": lambda: h.trim(4096, size),
    "status past the end": lambda: h.block_status(4096, size, ignore),
    "read across the end": lambda: h.pread(8192, size - 4096),
    # No command has this flag.
    "unknown flag": lambda: h.pread(4096, 0, flags=1 << 12),
}
seen: dict[str, str] = {}
for name, trial in trials.items():
    try:
        trial()
        seen[name] = "ok"
    except nbd.Error as error:
        seen[name] = error.errno or "unknown"
    if h.aio_is_dead() or h.aio_is_closed():
        seen[name] += ", and then the connection was gone"
        break
else:
    h.shutdown()
print(json.dumps(seen))
