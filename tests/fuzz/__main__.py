"""`python -m tests.fuzz`: runs until the time is over or something is found, which ends it with 1.

Each schedule of sessions runs with the compiled pump, if there is one, and without.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from random import Random
from unittest.mock import patch

from gateway.hub import pump
from tests.fuzz.target import Target, check
from tests.fuzz.targets import TARGETS
from tests.sessions import registers

SPECIAL = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", bytes(8))


def mutated(random: Random, data: bytes) -> bytes:
    """Change a message here and there, or leave it."""
    changed = bytearray(data)
    for _ in range(random.choice((0, 0, 0, 1, 1, 2, 5))):
        at = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                special = random.choice(SPECIAL)
                changed[at : at + len(special)] = special
            case 2:
                del changed[at : at + random.choice((1, 4, 8))]
            case 3:
                changed[at:at] = random.randbytes(random.choice((1, 4, 8)))
            case _:
                if at < len(changed):
                    changed[at] ^= 1 << random.randrange(8)
    return bytes(changed)


def given(random: Random, target: Target) -> bytes:
    """Give an input: messages, most of them mutated a little."""
    data = random.choice(target.start)
    if not target.comes_in_pieces:
        data = mutated(random, data)
    for _ in range(random.randrange(12)):
        if target.messages and random.randrange(10):
            data += mutated(random, random.choice(target.messages))
        else:
            data += random.randbytes(random.randrange(64))
    return data


def finds(seed: int) -> bool:
    """Run every target once; print what is found."""
    found = False
    for name, target in TARGETS.items():
        data = given(Random(f"{seed} {name}"), target)
        try:
            check(target, data)
        except Exception:
            found = True
            print(f"{name}: seed {seed}, input {data!r}")
            traceback.print_exc()
    return found


def breaks(seed: int) -> bool:
    """Run a schedule of sessions before one disk, on both paths; print what is found."""
    paths = (True, False) if pump.is_compiled() else (False,)
    return any(_breaks(seed, pumped=pumped) for pumped in paths)


def _breaks(seed: int, *, pumped: bool) -> bool:
    try:
        with patch.dict(os.environ, {} if pumped else {pump.VARIABLE: "0"}):
            registers.run(seed)
    except Exception:
        print(f"registers: seed {seed}, {'with' if pumped else 'without'} the pump")
        traceback.print_exc()
        return True
    return False


def main(arguments: list[str]) -> int:
    """Run; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long (default: 120)")
    parser.add_argument("--seed", type=int, help="run this seed alone, to see a finding again")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return int(finds(options.seed) or breaks(options.seed))
    first = seed = Random().randrange(2**48)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        if finds(seed) or breaks(seed):
            return 1
        seed += 1
    count = seed - first
    paths = "with the pump and without" if pump.is_compiled() else "without the pump"
    print(
        f"{count} inputs for each of {len(TARGETS)} readers, {count} schedules {paths}; nothing found"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
