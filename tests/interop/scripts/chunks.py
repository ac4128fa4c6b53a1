"""In which pieces a structured read comes: chunks.py URI LENGTH [OFFSET]."""

import hashlib
import json
import signal
import sys
from typing import Any

import nbd

uri, length, offset = sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0])
names = {nbd.READ_DATA: "data", nbd.READ_HOLE: "hole", nbd.READ_ERROR: "error"}
chunks: list[tuple[int, int, str]] = []


def chunk(piece: bytes, at: int, status: int, error: Any) -> int:
    chunks.append((at, len(piece), names[status]))
    return 0


signal.alarm(500)
h = nbd.NBD()
h.connect_uri(uri)
data = h.pread_structured(length, offset, chunk)
h.shutdown()
print(json.dumps({"chunks": sorted(chunks), "sha256": hashlib.sha256(data).hexdigest()}))
