"""The readers of those who look on (`gateway.trace`): they end no connection, and never raise."""

from __future__ import annotations

from collections.abc import Callable

from gateway.trace.message import Kind
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from tests.fuzz.target import MAX_TEXT_CHARACTERS, Pieces, Target
from tests.trace.conversations import Conversation, answers, requests

MOST_CHARACTERS = 2 * MAX_TEXT_CHARACTERS
"""Of a line for people, with the extents of a reply and the command that it answers."""


def onlooker(framing: Framing, *, asks: bool) -> Callable[[Pieces], object]:
    """Garbage in one direction: each byte belongs to one message, or to none that was seen to begin."""

    def run(pieces: Pieces) -> object:
        talk = Conversation(framing, payloads=4)
        if not asks:
            for request in requests(framing):
                talk.requests.feed(request)
            talk.seen.clear()
        decoder = talk.requests if asks else talk.answers
        for piece in pieces:
            decoder.feed(memoryview(piece))
        for line in talk.words:
            assert line.isprintable()
            assert len(line) < MOST_CHARACTERS
        at = 0
        for each in talk.seen:
            assert each.at >= at
            # What is none may have the beginning of the next one in it.
            none = each.kind is Kind.STRANGE and each.raw
            at = each.at + (1 if none else each.length)
        return [(each.kind, each.raw, each.length, each.at, each.asked) for each in talk.seen]

    return run


TARGETS = {
    f"trace-{what}-{framing}": Target(
        onlooker(framing, asks=asks), (b"",), tuple(requests(framing) if asks else answers(framing))
    )
    for framing in (SIMPLE, STRUCTURED, EXTENDED)
    for what, asks in (("requests", True), ("answers", False))
}
