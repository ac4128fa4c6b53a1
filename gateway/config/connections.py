"""`connections` of an upstream: how many connections to it are wanted, and for whom.

    "per-client"   one for each client: what the server sees is what it would see without the gateway
    "shared"       one for all clients of an export
    4              four for each client
    "shared:4"     four for all clients of an export

It is what an operator wishes for. What is had of it goes by the server, see `gateway.upstream.coherence`.
"""

import re
from dataclasses import dataclass

from gateway.config.base import shown

MAX_CONNECTIONS = 16
"""Each costs a socket on both sides, and something of the server to serve it. nbdcopy takes 4 unless it is told
otherwise, and what 4 do not bring, 16 seldom will."""


@dataclass(frozen=True, slots=True)
class Connections:
    """What is wanted; `str()` gives it as it is written."""

    shared: bool = False
    """They are all clients' of an export together; otherwise each client has its own."""
    count: int = 1

    def __str__(self) -> str:
        if self.shared:
            return "shared" if self.count == 1 else f"shared:{self.count}"
        return "per-client" if self.count == 1 else str(self.count)


PER_CLIENT = Connections()

_EXPECTED = f'expected "per-client", "shared", a number of 1 to {MAX_CONNECTIONS}, or "shared:4" and the like'


def parse_connections(value: object) -> Connections:
    """Read what is written. Raises ValueError."""
    if value == "per-client":
        return PER_CLIENT
    if value == "shared":
        return Connections(shared=True)
    if isinstance(value, int) and not isinstance(value, bool):
        return Connections(count=_checked(value, value))
    if isinstance(value, str):
        if found := re.fullmatch(r"shared:([0-9]{1,9})", value, re.ASCII):
            return Connections(shared=True, count=_checked(int(found[1]), value))
        if re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
            count = _checked(int(value), value)
            raise ValueError(f"{_EXPECTED}, got {shown(value)}: write {count}, without quotes")
    raise ValueError(f"{_EXPECTED}, got {shown(value)}")


def _checked(count: int, written: object) -> int:
    if not 1 <= count <= MAX_CONNECTIONS:
        raise ValueError(f"{_EXPECTED}, got {shown(written)}")
    return count
