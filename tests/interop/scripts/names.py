"""Export names as the server gets them: names.py URI HEX...

For each name (UTF-8 in hexadecimal, so that no shell, URI or locale has a say), the export's
contents in hexadecimal. The URI gives the server only.
"""

import json
import signal
import sys
from urllib.parse import parse_qs, urlsplit

import nbd

signal.alarm(500)
socket = parse_qs(urlsplit(sys.argv[1]).query)["socket"][0]
contents = []
for name in sys.argv[2:]:
    h = nbd.NBD()
    h.set_export_name(bytes.fromhex(name).decode())
    h.connect_unix(socket)
    size = h.get_size()
    contents.append(h.pread(size, 0).hex() if size else "")
    h.shutdown()
print(json.dumps(contents))
