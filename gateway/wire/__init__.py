"""Bytes <-> values, and nothing else: every message of the NBD protocol, one place each.

    constants.py     proto.md's numbers, with their names
    limits.py        the bounds that we put on what a peer may send
    handshake.py     the messages of negotiation
    transmission.py  those of the transmission phase
    framing.py       how a reply is said in each of the three framings
    extents.py       what block status says
    ranges.py        ranges of bytes: cut, merged, compared
    proxy.py         what load balancers send before all of it
    errors.py        the bytes are not a message of the protocol

All integers are big-endian. `encode_*` gives bytes; `decode_*` takes the whole body of one message,
returns a value or raises `WireError`, and never anything else. Section names in docstrings are those of
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""
