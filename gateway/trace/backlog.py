"""What waits for a reader, as far as there is room."""

from __future__ import annotations

from collections import deque

from gateway.trace.message import Message
from gateway.wire.limits import MIB

MAX_WAITING_BYTES = 4 * MIB
"""What may wait: some ten thousand messages, about what goes through in a busy second. A terminal that stops
for longer loses some, and the gateway's memory is not its scrollback."""

MESSAGE_BYTES = 400
"""What a message is counted as, beside its bytes: what its objects take."""


class Backlog:
    """Messages that wait. What finds no room is dropped and counted."""

    def __init__(self, most: int = MAX_WAITING_BYTES) -> None:
        self._most = most
        self._waiting: deque[Message | str | int] = deque()
        self._bytes = 0
        self.messages = 0
        """How many there were, those that were dropped included."""
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, seen: Message) -> None:
        """Have a message wait."""
        self.messages += 1
        if not self._room(MESSAGE_BYTES + len(seen.raw)):
            self._drop()
            return
        self._waiting.append(seen)

    def note(self, text: str) -> None:
        """Have a word of ours wait."""
        if self._room(MESSAGE_BYTES + len(text)):
            self._waiting.append(text)
        else:
            self._drop()

    def _room(self, size: int) -> bool:
        if self._bytes + size > self._most:
            return False
        self._bytes += size
        return True

    def _drop(self) -> None:
        """In place of what is dropped in a row, its number waits."""
        self.dropped += 1
        if self._waiting and isinstance(self._waiting[-1], int):
            self._waiting[-1] += 1
        else:
            self._waiting.append(1)

    def take(self) -> Message | str | int:
        """Give what has waited longest: a message, a word of ours, or how many were dropped there."""
        taken = self._waiting.popleft()
        if isinstance(taken, Message):
            self._bytes -= MESSAGE_BYTES + len(taken.raw)
        elif isinstance(taken, str):
            self._bytes -= MESSAGE_BYTES + len(taken)
        return taken

    def clear(self) -> None:
        """Nobody reads any more."""
        self._waiting.clear()
        self._bytes = 0
