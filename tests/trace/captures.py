"""A reader of pcapng that shares nothing with our writer but the format."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Packet:
    nanoseconds: int
    source: str
    target: str
    sequence: int
    acknowledged: int
    data: bytes
    length: int
    """Of the TCP segment, whatever of it is there."""
    comment: str


def read(capture: bytes) -> list[Packet]:
    """Give the packets of a capture. Raises `AssertionError` for what is wrong with it."""
    packets: list[Packet] = []
    kinds = []
    while capture:
        kind, size = struct.unpack_from("<II", capture)
        assert size % 4 == 0
        assert struct.unpack_from("<I", capture, size - 4) == (size,)
        body, capture = capture[8 : size - 4], capture[size:]
        kinds.append(kind)
        if kind == 0x0A0D0D0A:
            assert struct.unpack_from("<IHH", body) == (0x1A2B3C4D, 1, 0)
        elif kind == 1:
            assert struct.unpack_from("<H", body) == (101,)
            assert _options(body[8:]) == {9: b"\x09"}
        else:
            assert kind == 6
            packets.append(_packet(body))
    assert kinds[:2] == [0x0A0D0D0A, 1]
    return packets


def _packet(body: bytes) -> Packet:
    interface, high, low, here, whole = struct.unpack_from("<IIIII", body)
    assert interface == 0
    ip = body[20 : 20 + here]
    options = _options(body[20 + here + -here % 4 :])
    assert ip[0] == 0x45
    assert int.from_bytes(ip[2:4]) == whole
    assert ip[9] == 6
    tcp = ip[20:]
    source, target = int.from_bytes(tcp[:2]), int.from_bytes(tcp[2:4])
    assert tcp[12] == 0x50
    return Packet(
        high << 32 | low,
        f"{'.'.join(map(str, ip[12:16]))}:{source}",
        f"{'.'.join(map(str, ip[16:20]))}:{target}",
        int.from_bytes(tcp[4:8]),
        int.from_bytes(tcp[8:12]),
        tcp[20:],
        whole - 40,
        options[1].decode(),
    )


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        code, size = struct.unpack_from("<HH", data)
        if not code:
            return found
        found[code] = data[4 : 4 + size]
        data = data[4 + size + -size % 4 :]
    return found
