"""Write, zero all of it with one command, and look: zero.py URI BYTES, with extended headers."""

import json
import signal
import sys

import nbd

signal.alarm(500)
size = int(sys.argv[2])
piece = b"\xff" * (1 << 20)
h = nbd.NBD()
h.set_strict_mode(0)  # the length is over what the server says
h.set_request_extended_headers(True)
h.connect_uri(sys.argv[1])
for offset in range(0, size + len(piece), len(piece)):
    h.pwrite(piece, offset)
h.zero(size, 0)
found = [offset for offset in range(0, size, len(piece)) if any(h.pread(len(piece), offset))]
behind = bytes(h.pread(1, size)) == b"\xff"
extended = h.get_extended_headers_negotiated()
h.shutdown()
print(json.dumps({"extended": extended, "not_zeroed": found, "behind": behind}))
