"""64 reads and writes of 4 MiB in turn, all in flight at once: libnbd's own aio-parallel load.

parallel.py URI. Both sides want to write more than any socket buffer holds, so whoever
does not read while it writes is stuck for ever.
"""

import json
import signal
import sys

import nbd

SIZE = 4 << 20
IN_FLIGHT = 64
ASKED = 8 * IN_FLIGHT

uri = sys.argv[1]
signal.alarm(500)
h = nbd.NBD()
h.connect_uri(uri)
slots = h.get_size() // SIZE
assert slots >= IN_FLIGHT

patterns = [bytes([n + 1]) * SIZE for n in range(IN_FLIGHT)]
outgoing = [nbd.Buffer.from_bytearray(bytearray(pattern)) for pattern in patterns]
incoming = [nbd.Buffer(SIZE) for _ in range(IN_FLIGHT)]
written: set[int] = set()
issued = answered = 0
in_flight: dict[int, int] = {}


def issue(slot: int) -> None:
    """Alternate: what a slot has written, it reads next."""
    offset = slot * SIZE
    if slot in written:
        in_flight[slot] = h.aio_pread(incoming[slot], offset)
    else:
        in_flight[slot] = h.aio_pwrite(outgoing[slot], offset)


# Half of the slots have been written already, so that both kinds are in flight from the start.
for slot in range(0, IN_FLIGHT, 2):
    h.pwrite(patterns[slot], slot * SIZE)
    written.add(slot)
for slot in range(IN_FLIGHT):
    issue(slot)
    issued += 1
while in_flight:
    h.poll(-1)
    for slot, cookie in list(in_flight.items()):
        if not h.aio_command_completed(cookie):
            continue
        del in_flight[slot]
        answered += 1
        if slot in written:
            assert incoming[slot].to_bytearray() == patterns[slot], f"slot {slot} is wrong"
            written.discard(slot)
        else:
            written.add(slot)
        if issued < ASKED:
            issue(slot)
            issued += 1
h.shutdown()
print(json.dumps({"issued": issued, "answered": answered}))
