"""Many small unaligned WRITEs, and a goodbye without waiting for their answers: farewell.py URI COUNT

Prints how many completed without an error. DISC does not take back what was asked before it.
"""

import json
import signal
import sys
from typing import Any

import nbd

STEP_BYTES = 8192

signal.alarm(500)
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
well = 0


def completed(error: Any) -> int:
    global well
    well += not error.value
    return 1


for number in range(int(sys.argv[2])):
    data = nbd.Buffer.from_bytearray(bytearray(b"%07d," % number * 75))
    h.aio_pwrite(data, number * STEP_BYTES + 100, completion=completed)
h.shutdown()
print(json.dumps({"well": well}))
