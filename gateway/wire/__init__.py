"""Bytes <-> values, and nothing else: every message of the NBD protocol, one place each.

`constants` has proto.md's numbers with their names, `limits` the bounds that we put on what a peer may
send, `handshake` the messages of negotiation, `transmission` those of the transmission phase,
`extents` what block status says, `proxy` what load balancers send before all of it.

All integers are big-endian. `encode_*` gives bytes; `decode_*` takes the whole body of one message,
returns a value or raises `WireError`, and never anything else. Section names in docstrings are those of
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""
