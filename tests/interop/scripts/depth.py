"""All commands, 64 in flight, against a model of what the disk must hold.

depth.py URI [--simple] [--operations N] [--from OFFSET] [--length BYTES] [--longest BYTES] [--cluster BYTES]
         [--seed N]

Ranges in flight never overlap, so the order in which the server does them does not matter.
Prints how many of each command were answered. Needs libnbd's Python module.
"""

import argparse
import collections
import json
import random
import signal
from typing import Any

import nbd

parser = argparse.ArgumentParser()
parser.add_argument("uri")
parser.add_argument("--simple", action="store_true", help="do not ask for structured replies")
parser.add_argument("--plain", action="store_true", help="nothing but READ and WRITE")
parser.add_argument("--operations", type=int, default=2500)
parser.add_argument("--from", type=int, default=0, dest="start")
parser.add_argument("--length", type=int, default=16 << 20)
parser.add_argument("--longest", type=int, default=256 << 10)
parser.add_argument(
    "--cluster", type=int, default=1, help="no two in flight in one of so many bytes"
)
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()

DEPTH = 64
LONGEST = options.longest
# What a TRIM leaves is anybody's guess until it is written again.
UNKNOWN, KNOWN = 0, 1

# Whatever goes wrong, this ends: the default action of SIGALRM is to die.
signal.alarm(500)
rng = random.Random(options.seed)
h = nbd.NBD()
h.set_request_structured_replies(not options.simple)
if not options.simple:
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(options.uri)
assert not (options.simple and h.get_structured_replies_negotiated())
align = max(h.get_block_size(nbd.SIZE_MINIMUM), 1)
end = options.start + options.length
assert end <= h.get_size()

model = bytearray()
for offset in range(options.start, end, LONGEST):
    model += h.pread(min(LONGEST, end - offset), offset)
known = bytearray([KNOWN]) * len(model)

commands = ["read", "read", "write", "write"]
commands += ["zero"] if h.can_zero() else []
commands += ["trim"] if h.can_trim() else []
commands += ["flush"] if h.can_flush() else []
commands += ["cache"] if h.can_cache() else []
if not options.simple and h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
    commands.append("status")

if options.plain:
    commands = ["read", "write"]

busy: dict[int, tuple[int, int]] = {}
done: collections.Counter[str] = collections.Counter()
failures: list[str] = []


def choose() -> tuple[int, int]:
    """A range that nothing in flight touches, nor a cluster that it is in."""
    cluster = options.cluster
    while True:
        # Mostly pages, sometimes odd edges where the server takes them.
        unit = align if rng.random() < 0.2 else max(4096, align)
        length = min(rng.choice([unit, 4096, 65536, LONGEST]), LONGEST)
        length = max(length // unit * unit, unit)
        start = rng.randrange(0, (len(model) - length) // unit + 1) * unit
        first, last = start // cluster * cluster, -(-(start + length) // cluster) * cluster
        if all(last <= a or b <= first for a, b in busy.values()):
            return start, start + length


def finish(name: str, number: int, error: Any) -> int:
    """Account for one answer; 1 tells libnbd to retire the command."""
    del busy[number]
    done[name] += 1
    if error.value:
        failures.append(f"{name} failed with errno {error.value}")
    error.value = 0
    return 1


def start(number: int) -> None:
    """Issue one random command."""
    name = rng.choice(commands)
    if name == "flush":
        busy[number] = (0, 0)
        h.aio_flush(completion=lambda error: finish(name, number, error))
        return
    first, last = busy[number] = choose()
    at, length = options.start + first, last - first

    if name == "read":
        buffer = nbd.Buffer(length)

        def got(error: Any) -> int:
            data = buffer.to_bytearray()
            if not error.value and data != model[first:last]:
                mask = known[first:last]
                wrong = [i for i in range(length) if mask[i] and data[i] != model[first + i]]
                if wrong:
                    failures.append(f"read of {length} at {at} is wrong from {at + wrong[0]} on")
            return finish(name, number, error)

        h.aio_pread(buffer, at, completion=got)
        return

    if name == "status":
        covered: list[tuple[int, int]] = []

        def extent(context: str, offset: int, entries: list[int], error: Any) -> int:
            covered.extend(zip(entries[::2], entries[1::2], strict=True))
            return 0

        def told(error: Any) -> int:
            position = first
            for size, flags in covered:
                stop = min(position + size, last)
                claims_zero = bool(flags & nbd.STATE_ZERO)
                if claims_zero and KNOWN in known[position:stop]:
                    pairs = zip(model[position:stop], known[position:stop], strict=True)
                    if any(byte and state for byte, state in pairs):
                        failures.append(f"status says zero, but data is at {position}..{stop}")
                position = stop
            if not error.value and position == first:
                failures.append(f"status of {length} at {at} covers nothing")
            return finish(name, number, error)

        h.aio_block_status(length, at, extent, completion=told)
        return

    fua = h.can_fua() and name != "cache" and not options.plain and rng.random() < 0.1
    flags = nbd.CMD_FLAG_FUA if fua else 0

    def changed(error: Any) -> int:
        return finish(name, number, error)

    if name == "write":
        data = rng.randbytes(length)
        model[first:last] = data
        known[first:last] = bytes([KNOWN]) * length
        buffer = nbd.Buffer.from_bytearray(bytearray(data))
        h.aio_pwrite(buffer, at, completion=changed, flags=flags)
    elif name == "zero":
        model[first:last] = bytes(length)
        known[first:last] = bytes([KNOWN]) * length
        if rng.random() < 0.3:
            flags |= nbd.CMD_FLAG_NO_HOLE
        h.aio_zero(length, at, completion=changed, flags=flags)
    elif name == "trim":
        known[first:last] = bytes([UNKNOWN]) * length
        h.aio_trim(length, at, completion=changed, flags=flags)
    else:
        h.aio_cache(length, at, completion=changed, flags=flags)


issued = 0
while issued < options.operations or busy:
    while issued < options.operations and len(busy) < DEPTH:
        start(issued)
        issued += 1
    h.poll(-1)
assert not failures, failures[:10]

# And once more from the disk, after everything.
for offset in range(0, len(model), LONGEST):
    piece = h.pread(min(LONGEST, len(model) - offset), options.start + offset)
    mask = known[offset : offset + len(piece)]
    want = model[offset : offset + len(piece)]
    if piece != want:
        wrong = [i for i in range(len(piece)) if mask[i] and piece[i] != want[i]]
        assert not wrong, f"the disk differs from {options.start + offset + wrong[0]} on"
h.shutdown()
print(json.dumps({"done": done, "commands": sorted(set(commands))}))
