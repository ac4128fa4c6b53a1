"""Many READs of a sparse disk and then large WRITEs, all under way at once: both_ways.py URI

A server that answers a READ in many chunks stops reading requests until they are taken. Prints how many were
asked and answered; that all are is the point.
"""

import json
import signal
import sys

import nbd

KIB = 1024
READS, WRITES, ROUNDS = 96, 32, 3
READ_BYTES, WRITE_BYTES = 256 * KIB, 1024 * KIB

signal.alarm(500)
h = nbd.NBD()
h.connect_uri(sys.argv[1])
half = h.get_size() // 2
data = nbd.Buffer.from_bytearray(bytearray(b"w" * WRITE_BYTES))
under_way = []
for _ in range(ROUNDS):
    for number in range(READS):
        room = nbd.Buffer(READ_BYTES)
        under_way.append(h.aio_pread(room, number * READ_BYTES % (half - READ_BYTES)))
    for number in range(WRITES):
        under_way.append(h.aio_pwrite(data, half + number * WRITE_BYTES % (half - WRITE_BYTES)))
asked, answered = len(under_way), 0
while under_way and h.poll(15_000):
    done = {cookie for cookie in under_way if h.aio_command_completed(cookie)}
    answered += len(done)
    under_way = [cookie for cookie in under_way if cookie not in done]
print(json.dumps({"asked": asked, "answered": answered}))
