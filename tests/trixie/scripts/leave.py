"""Connect, read, and leave in good order: leave.py URI EXTENDED, which is true or false in JSON."""

import json
import signal
import sys

import nbd

signal.alarm(500)
h = nbd.NBD()
h.set_request_extended_headers(json.loads(sys.argv[2]))
h.connect_uri(sys.argv[1])
h.pread(4096, 0)
h.shutdown()
print("null")
