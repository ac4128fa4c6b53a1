"""Which commands a session may send, and what is answered to those that it may not.

A request's flags and type are one 32-bit word on the wire (`gateway.wire.transmission`), so what an offer
allows is a dict from word to `WordRule`: one look-up finds what the data plane has to do with it. A word that
is not in the dict is illegal, and `refusal()` says with which error. It does so too for a range that is out of
bounds, unaligned or too long. Of several things that are wrong it names the first: read-only before range,
range before alignment.

"Request types", "Command flags" and "Error values" in proto.md; the errors that qemu, nbdkit and nbd-server
give instead are why we leave none of this to the upstream (nbd-reference 2.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from gateway.protocol.export import Offer
from gateway.wire import limits
from gateway.wire.constants import Cmd, CmdFlag, Errno, name_of
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.transmission import CONTEXT_ID, STATUS_PAYLOAD_HEAD

WRITE_CLASS = frozenset({Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES})
RANGED = frozenset({Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES, Cmd.BLOCK_STATUS})
PAYLOAD = frozenset({Cmd.READ, Cmd.WRITE})
"""Commands whose length is that of data on the wire, so that the maximum payload holds for them."""

NEEDS_FLAG: dict[Cmd, Flag] = {
    Cmd.FLUSH: Flag.SEND_FLUSH,
    Cmd.TRIM: Flag.SEND_TRIM,
    Cmd.CACHE: Flag.SEND_CACHE,
    Cmd.WRITE_ZEROES: Flag.SEND_WRITE_ZEROES,
}
"""The transmission flag that promises a command."""

_COMMAND_FLAGS: dict[Cmd, dict[CmdFlag, Flag | None]] = {
    # FUA is legal on every command once it is offered ("Command flags").
    Cmd.READ: {CmdFlag.FUA: Flag.SEND_FUA, CmdFlag.DF: Flag.SEND_DF},
    Cmd.WRITE: {CmdFlag.FUA: Flag.SEND_FUA},
    Cmd.FLUSH: {CmdFlag.FUA: None},  # qemu 2.5 and older set it, offered or not (Q-C12)
    Cmd.TRIM: {CmdFlag.FUA: Flag.SEND_FUA},
    Cmd.CACHE: {CmdFlag.FUA: Flag.SEND_FUA},
    Cmd.WRITE_ZEROES: {
        CmdFlag.FUA: Flag.SEND_FUA,
        CmdFlag.NO_HOLE: None,
        CmdFlag.FAST_ZERO: Flag.SEND_FAST_ZERO,
    },
    Cmd.BLOCK_STATUS: {CmdFlag.FUA: Flag.SEND_FUA, CmdFlag.REQ_ONE: None},
}

NOT_TRIED = frozenset(
    {Errno.EPERM, Errno.EINVAL, Errno.ENOTSUP, Errno.ENOMEM, Errno.EOVERFLOW, Errno.ESHUTDOWN}
)
"""Errors by which a server says that it has not tried to FLUSH: nothing is lost, and nothing is covered. Any
other error, with a name or without, says that something is lost."""

FUA_MATTERS = WRITE_CLASS
"""Commands for which FUA means something. For others it is not passed on: qemu flushes for a READ that has it
(Q-S16)."""

_EVERY_FUA = ~int(CmdFlag.PAYLOAD_LEN)
_NO_FUA = _EVERY_FUA & ~int(CmdFlag.FUA)
"""Which flags go upstream, where FUA matters and where it does not."""

SHOWS_CONTENT = frozenset({Cmd.READ, Cmd.BLOCK_STATUS})
"""Commands whose answer would show what is on the disk in place of what is lost."""


@dataclass(frozen=True, slots=True)
class WordRule:
    """What the data plane does with requests of one word."""

    command: Cmd
    flags: int
    """Command flags that the upstream gets. PAYLOAD_LEN is not among them: it belongs to the framing, and each
    side has its own.
    """
    longest: int
    """Longest length, in bytes."""


def legal_commands(offer: Offer) -> dict[int, WordRule]:
    """Give every word that an offer allows, with its rule. DISC is not among them: it ends a session."""
    rules = {}
    for command in _COMMAND_FLAGS:
        if not _may_send(offer, command):
            continue
        # Plain numbers: each session begins here, and with members of an enumeration it takes twice as long.
        allowed = [*map(int, _allowed_flags(offer, command))]
        passing = _EVERY_FUA if command in FUA_MATTERS else _NO_FUA
        most = longest(offer, command)
        for count in range(len(allowed) + 1):
            for chosen in combinations(allowed, count):
                seen = sum(chosen)
                rules[seen << 16 | command] = WordRule(command, seen & passing, most)
    return rules


def _may_send(offer: Offer, command: Cmd) -> bool:
    if offer.allows(Flag.READ_ONLY) and command in WRITE_CLASS:
        return False
    if command is Cmd.BLOCK_STATUS:
        return bool(offer.contexts)
    needed = NEEDS_FLAG.get(command)
    return needed is None or offer.allows(needed)


def longest(offer: Offer, command: Cmd) -> int:
    """Give the longest length that a command may have, in bytes."""
    return offer.longest_payload if command in PAYLOAD else offer.framing.max_length


@dataclass(frozen=True, slots=True)
class RefusedCommand:
    """A command that we refuse: the error, and a sentence for a client whose framing has room for it."""

    error: Errno
    text: str
    by: str = field(default="", compare=False)
    """The policy that refuses it, by its name; empty: it is illegal."""


def refusal(offer: Offer, word: int, offset: int, length: int) -> RefusedCommand | None:
    """Say why a request is illegal that the data plane did not take as it stands. None: it is legal, and has a
    length of 0, or needs work of its own. `subset_refusal` judges the payload of a BLOCK_STATUS.
    """
    number = word & 0xFFFF
    if number not in _COMMAND_FLAGS:
        return RefusedCommand(Errno.EINVAL, f"{name_of(Cmd, number)} is not supported")
    command = Cmd(number)
    if offer.allows(Flag.READ_ONLY) and command in WRITE_CLASS:
        return RefusedCommand(Errno.EPERM, f"{command.name}: the export is read-only")
    if command is Cmd.BLOCK_STATUS and not offer.contexts:
        return RefusedCommand(Errno.EINVAL, "BLOCK_STATUS: no meta context was negotiated")
    if not _may_send(offer, command):
        return RefusedCommand(Errno.EINVAL, f"{command.name} was not offered for this export")
    unknown = _illegal_flags(offer, command, word >> 16)
    if unknown:
        return RefusedCommand(
            Errno.EINVAL, f"{command.name} with command flags {unknown:#x}, which were not offered"
        )
    if command not in RANGED:
        if offset or length:
            return RefusedCommand(Errno.EINVAL, f"{command.name} with an offset or a length")
        return None
    if command is Cmd.BLOCK_STATUS and word >> 16 & CmdFlag.PAYLOAD_LEN:
        return _payload_refusal(offer, length)
    return _range_refusal(offer, command, offset, length)


def _payload_refusal(offer: Offer, length: int) -> RefusedCommand | None:
    """Say what is wrong with the size, in bytes, of a BLOCK_STATUS payload ("MUST occupy 8 + n*4 bytes").

    Without a context there is no answer. If there are more ids than contexts, one of them is unknown or stands
    twice. So we never have to hold a payload that is longer than a good one.
    """
    ids, odd = divmod(length - STATUS_PAYLOAD_HEAD.size, CONTEXT_ID.size)
    if odd or not 1 <= ids <= len(offer.contexts):
        text = (
            f"BLOCK_STATUS with a payload of {length} bytes; 8, and 4 for each of 1 to"
            f" {len(offer.contexts)} contexts, are taken"
        )
        return RefusedCommand(Errno.EINVAL, text)
    return None


def subset_refusal(
    offer: Offer, offset: int, length: int, ids: Sequence[int]
) -> RefusedCommand | None:
    """Say why a BLOCK_STATUS is illegal by its payload: the effect length in bytes, and the ids of contexts.
    `refusal` has judged its header.
    """
    known = {context.id for context in offer.contexts}
    if len(set(ids)) != len(ids) or not known.issuperset(ids):
        text = f"BLOCK_STATUS for contexts {list(ids)}, not each once and of {sorted(known)}"
        return RefusedCommand(Errno.EINVAL, text)
    return _range_refusal(offer, Cmd.BLOCK_STATUS, offset, length)


def _illegal_flags(offer: Offer, command: Cmd, flags: int) -> int:
    return flags & ~sum(_allowed_flags(offer, command))


def _allowed_flags(offer: Offer, command: Cmd) -> Iterator[CmdFlag]:
    for flag, needed in _COMMAND_FLAGS[command].items():
        if needed is None or offer.allows(needed):
            yield flag
    # With extended headers a WRITE MUST have it. qemu's client leaves it out (Q-C1), and means the same.
    has_payload = command is Cmd.WRITE or (
        command is Cmd.BLOCK_STATUS and offer.allows(Flag.BLOCK_STATUS_PAYLOAD)
    )
    if offer.extended and has_payload:
        yield CmdFlag.PAYLOAD_LEN


def longest_drain(offer: Offer, word: int) -> int:
    """Give the longest payload of a refused request, in bytes, that we read and drop. If it is longer, we close
    the connection.

    "A server SHOULD initiate hard disconnect if a client sets the NBD_CMD_FLAG_PAYLOAD_LEN flag and uses a
    length larger than a server's advertised or default maximum payload length".
    """
    marked = offer.extended and word >> 16 & CmdFlag.PAYLOAD_LEN
    return offer.longest_payload if marked else limits.MAX_DRAIN_BYTES


def carries_payload(offer: Offer, word: int) -> bool:
    """Say whether a request's length is that of a payload behind its header, legal or not."""
    return word & 0xFFFF == Cmd.WRITE or bool(offer.extended and word >> 16 & CmdFlag.PAYLOAD_LEN)


def _range_refusal(offer: Offer, command: Cmd, offset: int, length: int) -> RefusedCommand | None:
    """Say what is wrong with the range of a command."""
    if offset + length > offer.size:
        beyond = Errno.ENOSPC if command in (Cmd.WRITE, Cmd.WRITE_ZEROES) else Errno.EINVAL
        text = f"{command.name} of {length} bytes at {offset} ends beyond the export's {offer.size} bytes"
        return RefusedCommand(beyond, text)
    if (offset | length) & (offer.alignment - 1):
        text = f"{command.name} of {length} bytes at {offset} is not aligned to {offer.alignment}"
        return RefusedCommand(Errno.EINVAL, text)
    most = longest(offer, command)
    if length > most:
        return RefusedCommand(
            Errno.EINVAL, f"{command.name} of {length} bytes; at most {most} are taken"
        )
    if command is Cmd.BLOCK_STATUS and not length:
        return RefusedCommand(Errno.EINVAL, "BLOCK_STATUS of no bytes, which has no answer")
    return None


_ERRORS_OF_OLD: dict[int, Errno] = {
    # Raw errno values of servers that send their own (Q-N13), by what proto.md has for them.
    13: Errno.EPERM,  # EACCES
    27: Errno.ENOSPC,  # EFBIG
    30: Errno.EPERM,  # EROFS
    122: Errno.ENOSPC,  # EDQUOT
}
_ALWAYS = frozenset(
    {Errno.EPERM, Errno.EIO, Errno.ENOMEM, Errno.EINVAL, Errno.ENOSPC, Errno.ESHUTDOWN}
)


def normal_error(word: int, error: int) -> Errno:
    """Give the error that a client is told when an upstream gave this one to a request of `word`. A value that
    proto.md does not have becomes EIO for READ and WRITE, which keeps the meaning of a bad medium, and EINVAL
    otherwise, as proto.md reads it.
    """
    command, flags = word & 0xFFFF, word >> 16
    if error in _ALWAYS:
        return Errno(error)
    if error in _ERRORS_OF_OLD:
        return _ERRORS_OF_OLD[error]
    if error == Errno.EOVERFLOW:
        legal = command not in PAYLOAD or (command == Cmd.READ and flags & CmdFlag.DF)
        return Errno.EOVERFLOW if legal else Errno.EINVAL
    if error == Errno.ENOTSUP:
        legal = command == Cmd.WRITE_ZEROES and flags & CmdFlag.FAST_ZERO
        return Errno.ENOTSUP if legal else Errno.EINVAL
    return Errno.EIO if command in PAYLOAD else Errno.EINVAL


def is_loss(error: int) -> bool:
    """Say whether a FLUSH that failed with this error says that something is lost."""
    return bool(error) and error not in NOT_TRIED


def told_error(error: int) -> int:
    """Give the error that clients are told for a FLUSH that failed with this one. Some errors make clients
    believe that nothing was tried, so a loss is EIO whatever the server calls it.
    """
    return Errno.EIO if is_loss(error) else error


def text_of_error(error: int) -> str:
    """Give a text for an error that came without one: its name, or its number; for no error, nothing."""
    return name_of(Errno, error) if error else ""
