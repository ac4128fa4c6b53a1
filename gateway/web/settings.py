"""What the gateway tells the child that speaks HTTP, as one JSON text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["unix", "loopback", "other"]
"""Who may come to an address: who may open a file, this machine's users, or anybody."""


@dataclass(frozen=True, slots=True)
class Door:
    """An address that is listened on."""

    descriptor: int
    """Its socket, which the child has inherited."""
    kind: Kind
    secure: bool
    """TLS is spoken there."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the child has to know."""

    control: str
    """Where it asks the gateway: the name of an abstract Unix socket (unix(7)), its NUL included."""
    doors: tuple[Door, ...]
    tokens: str | None = None
    certificates: str | None = None
    verify_client: bool = True
    hosts: tuple[str, ...] = ()
    """Names by which it may be called, beside those that go without saying."""

    def as_text(self) -> str:
        """Give the text."""
        return json.dumps(asdict(self))


def settings_in(text: str) -> Settings:
    """Read what `as_text` gives."""
    said = json.loads(text)
    doors = tuple(Door(**each) for each in said.pop("doors"))
    return Settings(doors=doors, **{**said, "hosts": tuple(said["hosts"])})
