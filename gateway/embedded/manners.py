"""The manners of a personality for which `ServerNegotiation` has no knobs.

`ServerNegotiation` understands the options and composes the replies as ever. What is here changes bytes on
their way in (Q-N8), and holds back whole replies on their way out.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.embedded.personality import Personality
from gateway.protocol.errors import Hangup
from gateway.protocol.server_role import (
    Description,
    Event,
    ExportAsked,
    ServerNegotiation,
    Tls,
)
from gateway.wire import handshake
from gateway.wire.constants import IHAVEOPT, Info, Opt, Rep

_REPLY = handshake.OPTION_REPLY
_OPTIONS = frozenset(Opt)  # Python 3.11 cannot say whether a number is in an enum
_EXPORT = handshake.U16.pack(Info.EXPORT)
_BLOCK_SIZE = handshake.U16.pack(Info.BLOCK_SIZE)


class Manners:
    """The negotiation of one connection; driven as `ServerNegotiation` is."""

    def __init__(self, personality: Personality, *, tls: Tls = Tls.OFF) -> None:
        self._personality = personality
        self.core = ServerNegotiation(replace(personality.dialect, tls=tls))
        self._framing = _Framing(personality) if personality.leaves_payload else None
        self._tells_block_sizes = False
        self._plain_output = True  # a greeting, or the answer to EXPORT_NAME: no option reply

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        self.core.receive(data if self._framing is None else self._framing.take(data))

    def next_event(self) -> Event | None:
        """Give what the client wants next, or None if more bytes are needed."""
        event = self.core.next_event()
        self._tells_block_sizes = False
        if isinstance(event, ExportAsked):
            asked = Info.BLOCK_SIZE in event.wanted
            told = self._personality.told_block_sizes(go=event.go, asked=asked)
            self._tells_block_sizes = told is not None
        return event

    def answer_export_name(self, export: Description) -> None:
        """Answer EXPORT_NAME."""
        self.core.answer_export_name(export)
        self._plain_output = True

    def data_to_send(self) -> bytes:
        """Give what has to go to the client; to be called after each event and after each answer."""
        data = self.core.data_to_send()
        if self._plain_output:
            self._plain_output = False
            return data
        at, kept = 0, b""
        while at < len(data):
            _, option, reply, length = _REPLY.unpack_from(data, at)
            end = at + _REPLY.size + length
            if self._says(option, reply, data[at + _REPLY.size : end]):
                kept += data[at:end]
            at = end
        return kept

    def _says(self, option: int, reply: int, payload: bytes) -> bool:
        if reply == Rep.INFO and payload.startswith(_BLOCK_SIZE):
            return self._tells_block_sizes
        if reply == Rep.INFO and self._personality.only_info_export:
            return payload.startswith(_EXPORT)
        if reply == Rep.ERR_UNSUP and self._personality.closes_when_unsupported:
            raise Hangup(f"option {option} is not supported")
        return option != Opt.ABORT or self._personality.acknowledges_abort


class OptionCount:
    """Counts the options of a client that sends none before the last one was answered."""

    def __init__(self) -> None:
        self.count = 0
        self._pass_bytes = handshake.CLIENT_FLAGS.size
        self._held = b""  # less than a header

    def take(self, data: bytes) -> None:
        """Take what has come."""
        data = self._held + data
        while len(data) >= self._pass_bytes + handshake.OPTION.size:
            _, _, length = handshake.OPTION.unpack_from(data, self._pass_bytes)
            data = data[self._pass_bytes + handshake.OPTION.size :]
            self._pass_bytes = length
            self.count += 1
        passed = min(self._pass_bytes, len(data))
        self._pass_bytes -= passed
        self._held = data[passed:]


class _Framing:
    """Q-N8: what follows the header of an option that is not supported is taken for the next option.

    `take` sets the length in such a header to 0, so the negotiation reads its data as options.
    """

    def __init__(self, personality: Personality) -> None:
        self._unsupported = personality.dialect.unsupported
        self._held = bytearray()  # less than a header
        self._pass_bytes = handshake.CLIENT_FLAGS.size
        self._over = False

    def take(self, data: bytes) -> bytes:
        """Give what the negotiation shall see."""
        self._held += data
        seen = bytearray()
        while self._held:
            if self._over or self._pass_bytes:
                count = len(self._held) if self._over else min(self._pass_bytes, len(self._held))
                seen += self._held[:count]
                del self._held[:count]
                self._pass_bytes -= 0 if self._over else count
                continue
            if len(self._held) < handshake.OPTION.size:
                break
            magic, number, length = handshake.OPTION.unpack_from(self._held)
            del self._held[: handshake.OPTION.size]
            supported = number in _OPTIONS and number not in self._unsupported
            self._pass_bytes = length if supported else 0
            # Bytes that are no header end the negotiation, and what follows the choice of an export is no
            # option. In both cases all the rest goes through as it is; after a GO that fails, too, for we do
            # not see that.
            self._over = magic != IHAVEOPT or (supported and number in (Opt.GO, Opt.EXPORT_NAME))
            seen += handshake.OPTION.pack(magic, number, self._pass_bytes)
        return bytes(seen)
