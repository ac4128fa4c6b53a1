"""Errors of a negotiation, named by what the catcher does next.

`gateway.wire.errors.WireError` (the bytes are no message) and `Hangup` (they are a message that must not be
answered): close, and log why. `Refusal`: answer the option with it and go on. `Misuse`: our own bug.
"""

from __future__ import annotations

from gateway.wire.constants import Rep, name_of
from gateway.wire.limits import MAX_STRING_BYTES


class Hangup(Exception):
    """The peer did something to which the only answer is to close. The text says what, for the log."""


class Refusal(Exception):
    """An option cannot be granted; `reply` and `text` go to the peer, and the negotiation goes on.

    `why` is for whoever runs us, and so is the error's own text: it may say what is no help to the peer, or
    none of its business. Without a `why`, it is `text`.
    """

    def __init__(self, reply: int, text: str = "", *, why: str | None = None) -> None:
        self.reply = reply
        # A path of ours that is not UTF-8 may be in it.
        encoded = text.encode(errors="backslashreplace")
        self.text = encoded[:MAX_STRING_BYTES].decode(errors="ignore")
        self.why = text if why is None else why
        name = name_of(Rep, reply)
        super().__init__(f"{name}: {self.why}" if self.why else name)


class Misuse(Exception):
    """A caller of this package broke its contract: an answer that nobody asked for, for one."""
