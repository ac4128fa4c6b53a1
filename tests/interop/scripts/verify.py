"""A client that writes, FLUSHes, reads back and compares, and connects again when it was disconnected, until
SIGTERM: verify.py URI OFFSET BLOCKS.

What is under way when the connection ends may be done or not. Whatever was answered has to be there: the server
does not die in between. Prints what it has seen as JSON.
"""

import errno
import json
import random
import signal
import sys
import time
from typing import Any

import nbd

BLOCK = 4096

AGAIN_SECONDS = 0.05
"""How soon it connects again after it was refused."""

MOST_REFUSED, MOST_BAD = 1000, 20
"""When it gives up: nobody serves there any more."""


class Ended(Exception):
    pass


def end(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Ended


def block(number: int, version: int) -> bytes:
    return f"{number} {version} ".encode().ljust(16, b".") * (BLOCK // 16)


def connected(uri: str, seen: dict[str, Any]) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    try:
        handle.connect_uri(uri)
    except nbd.Error as error:
        seen["refused"].append(str(error))
        time.sleep(AGAIN_SECONDS)
        raise
    return handle


def main(uri: str, offset: int, blocks: int) -> None:
    seen: dict[str, Any] = {
        "writes": 0,
        "flushes": 0,
        "reads": 0,
        "reconnects": -1,
        "refused": [],
        "bad": [],
    }
    versions = dict.fromkeys(range(blocks), 0)  # what was answered last
    asked = dict(versions)  # what may be there as well
    chance = random.Random(offset)
    signal.signal(signal.SIGTERM, end)
    handle = None
    try:
        while True:
            try:
                if handle is None:
                    handle = connected(uri, seen)
                    seen["reconnects"] += 1
                    print("begun" if not seen["reconnects"] else "again", flush=True)
                number = chance.randrange(blocks)
                at = offset + number * BLOCK
                match chance.randrange(10):
                    case 0:
                        handle.flush()
                        seen["flushes"] += 1
                    case 1 | 2 | 3 | 4:
                        asked[number] += 1
                        handle.pwrite(block(number, asked[number]), at)
                        versions[number] = asked[number]
                        seen["writes"] += 1
                    case _:
                        data = handle.pread(BLOCK, at)
                        seen["reads"] += 1
                        right = range(versions[number], asked[number] + 1)
                        fits = [each for each in right if data == block(number, each)]
                        if fits:
                            versions[number] = asked[number] = fits[0]
                        elif not (versions[number] == 0 and data == bytes(BLOCK)):
                            what = bytes(data[:24])
                            seen["bad"].append(f"block {number}: {what!r}, expected {right}")
            except nbd.Error as error:
                if error.errnum in (errno.EIO, errno.EINVAL, errno.ENOSPC):
                    seen["bad"].append(str(error))
                handle = None
                if len(seen["refused"]) > MOST_REFUSED or len(seen["bad"]) > MOST_BAD:
                    break
    except Ended:
        pass
    print(json.dumps(seen))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
