"""What a server was sent of options, read again."""

from __future__ import annotations

from gateway.wire.constants import IHAVEOPT, Opt
from gateway.wire.handshake import CLIENT_FLAGS, OPTION
from gateway.wire.transmission import DISC

FLAGS = CLIENT_FLAGS.pack(3)


def understood(sent: bytes) -> list[int]:
    """The options that a server has been sent, all whole, behind the client flags. DISC may follow GO."""
    assert sent[:4] == FLAGS
    sent = sent[4:]
    options: list[int] = []
    while sent and sent != DISC:
        magic, option, length = OPTION.unpack_from(sent)
        assert magic == IHAVEOPT
        assert len(sent) >= OPTION.size + length
        sent = sent[OPTION.size + length :]
        options.append(option)
    assert not sent or options[-1] == Opt.GO
    return options
