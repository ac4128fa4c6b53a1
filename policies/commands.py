"""Refuse commands, writes outside of a range, and requests that are too long.

`deny` names the commands that are refused, or `allow` names those that are not: READ, WRITE, FLUSH, TRIM,
CACHE, WRITE_ZEROES, BLOCK_STATUS. FLUSH, TRIM, CACHE or WRITE_ZEROES is not offered either when it is
refused, and without BLOCK_STATUS there are no meta contexts: a client that keeps to the protocol never sends
them. NBD has no way to say this of the others:

- without all three of WRITE, WRITE_ZEROES and TRIM the export is offered as read-only. Whoever denies WRITE
  alone lets clients change the disk by the other two, and a client that takes the disk for writable gets
  errors: see `readonly`;
- without READ a client gets an error when it reads, and most read at once: Linux looks for partitions, qemu
  for the image's format (unless it is told `format=raw`). It is of use for a target of backups that may not
  be read back;
- without FLUSH clients believe that the disk has no cache, and what they believe to be safe is lost when the
  server goes down. So FLUSH can be refused only where nothing can be written, or with `unsafe = true`.

`write-range` is where WRITE, WRITE_ZEROES and TRIM may touch the disk, in the client's offsets: "1M+512M"
(512M from 1M on), "0-445" (both ends inclusive, as in `protect`), "1M-" (to the end). A command that touches
a byte outside is refused as a whole.

`longest-request` holds for READ and WRITE. Clients are told it as the maximum block size: qemu and libnbd
keep to it, Linux does not. `longest-effect` holds for TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS. NBD has no
way to tell it, so clients get the error.

`error` is what clients get. Without it, they get EPERM for what is denied and EINVAL for what is too long.

None of this slows anything. nbdkit has no such filter; its nozero, nocache, protect and blocksize-policy each
do a part.

    policies = [ { use = "commands", deny = ["TRIM", "CACHE"], write-range = "1M-", longest-request = "1M" } ]
"""

import re
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Self

from pydantic import PlainValidator, TypeAdapter, WithJsonSchema, model_validator

from gateway.policy import (
    RANGED,
    WRITE_CLASS,
    BlockSizes,
    Cmd,
    Denied,
    Errno,
    Error,
    Field,
    Policy,
    Size,
    Table,
    View,
    format_size,
)

_COMMANDS = frozenset(Cmd) - {Cmd.DISC}  # everybody may leave
_NAMES = [command.name for command in sorted(_COMMANDS)]

_PAYLOAD = frozenset({Cmd.READ, Cmd.WRITE})

_SHORTEST_LIMIT_BYTES = 64 << 10
"""No limit is shorter: it is the largest minimum block, so that every export can be used at all; nbdkit's
blocksize-policy has the same for its minimum.
"""

_END = 2**63
"""Behind the last byte that an export can have."""

_ONLY_SOMETIMES = frozenset({Errno.EOVERFLOW, Errno.ENOTSUP})
"""proto.md forbids these as the answer to most commands."""

_RANGE = re.compile(r"([0-9a-z]+)([-+])([0-9a-z]*)", re.ASCII | re.IGNORECASE)
_SIZE: TypeAdapter[int] = TypeAdapter(Size)


def _command(value: object) -> Cmd:
    if isinstance(value, Cmd):
        return value
    if value in _NAMES:
        return Cmd[str(value)]
    close = get_close_matches(str(value).upper().removeprefix("NBD_CMD_"), _NAMES, n=1)
    hint = f', did you mean "{close[0]}"?' if close else f" (there are {', '.join(_NAMES)})"
    raise ValueError(f'expected a command, got "{value}"{hint}')


def _range(value: object) -> tuple[int, int]:
    """Give where a range begins and what is behind it."""
    shape = f'expected a range such as "1M+512M", "0-445" or "1M-", got "{value}"'
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(shape)
    first, sign, last = found.groups()
    try:
        start = _SIZE.validate_python(first)
        if not last:
            end = _END if sign == "-" else start
        else:
            end = start + _SIZE.validate_python(last) if sign == "+" else int(last) + 1
    except ValueError:
        # Whoever writes "1M-2M" hardly means the byte at 2M too, which an inclusive end would be.
        raise ValueError(f"{shape} (an end is in bytes, and inclusive)") from None
    if end <= start:
        raise ValueError(f'expected a range of at least one byte, got "{value}"')
    return start, end


def _limit(value: object) -> int:
    size: int = _SIZE.validate_python(value)
    if size < _SHORTEST_LIMIT_BYTES:
        shortest = format_size(_SHORTEST_LIMIT_BYTES)
        raise ValueError(f"expected a limit of at least {shortest}, got {value}")
    return size


_SIZE_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
_Command = Annotated[Cmd, PlainValidator(_command), WithJsonSchema({"enum": _NAMES})]
_Range = Annotated[tuple[int, int], PlainValidator(_range), WithJsonSchema({"type": "string"})]
_Limit = Annotated[int, PlainValidator(_limit), WithJsonSchema(_SIZE_SCHEMA)]


class Commands(Policy):
    """`use = "commands"`."""

    deny: list[_Command] = Field(default=[], description="Commands that are refused.")
    allow: list[_Command] | None = Field(
        default=None, description="Commands that are not refused; all others are."
    )
    write_range: _Range | None = Field(
        default=None, description="Where WRITE, WRITE_ZEROES and TRIM may touch the disk."
    )
    longest_request: _Limit | None = Field(
        default=None, description="Longest READ and WRITE, at least 64K."
    )
    longest_effect: _Limit | None = Field(
        default=None, description="Longest TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS, at least 64K."
    )
    error: Error | None = Field(
        default=None,
        description="The error, instead of EPERM (and of EINVAL for what is too long).",
    )
    unsafe: bool = Field(
        default=False, description="Refuse FLUSH although the disk can be written."
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.deny and self.allow is not None:
            raise ValueError("expected deny or allow, got both")
        if Cmd.FLUSH in self._refused and not self._refused >= WRITE_CLASS and not self.unsafe:
            raise ValueError(
                "FLUSH is refused and the disk can be written: nothing written would be safe. Refuse WRITE,"
                " WRITE_ZEROES and TRIM as well, or set unsafe = true"
            )
        if self.error is not None and self.error in _ONLY_SOMETIMES:
            fit = ", ".join(error.name for error in Errno if error not in _ONLY_SOMETIMES)
            raise ValueError(
                f"expected an error that fits every command ({fit}), got {self.error.name}"
            )
        return self

    @property
    def _refused(self) -> frozenset[Cmd]:
        return frozenset(self.deny) if self.allow is None else _COMMANDS - {*self.allow}

    def context(self, name: str) -> bool:
        """Have no contexts without BLOCK_STATUS."""
        if Cmd.BLOCK_STATUS not in self._refused:
            return True
        if name.startswith("qemu:"):
            # qemu 3.0 takes a bitmap that it asked for and did not get for one that is all clean.
            raise Denied(f"commands: BLOCK_STATUS is refused here, and {name} with it")
        return False

    def describe(self, view: View) -> View:
        """Tell the client what NBD has words for."""
        if Cmd.BLOCK_STATUS in self._refused:
            view = replace(view, contexts=frozenset())
        if self.longest_request is not None:
            sizes = _clipped(view.block_sizes, self.longest_request)
            view = replace(view, block_sizes=sizes)
        return view

    def commands(self, table: Table) -> None:
        """Refuse what is refused."""
        denied = self.error or Errno.EPERM
        too_long = self.error or Errno.EINVAL
        table.refuse(*self._refused, error=denied, text="refused by policy commands")
        if self.write_range is not None:
            start, end = self.write_range
            last = "the end" if end >= table.size else str(end - 1)
            text = f"only bytes {start} to {last} may be written"
            for barred in ((0, min(start, table.size)), (end, table.size)):
                if barred[0] < barred[1]:
                    table.protect(*barred, error=denied, text=text)
        for command in RANGED:
            longest = self.longest_request if command in _PAYLOAD else self.longest_effect
            if longest is not None:
                text = f"at most {longest} bytes are taken"
                table.limit_length(command, longest, error=too_long, text=text)


def _clipped(sizes: BlockSizes, longest: int) -> BlockSizes:
    """Give block sizes for payloads of no more than `longest` bytes. proto.md wants a maximum that is a
    multiple of the minimum, and a preferred size between them that is a power of two.
    """
    if sizes.maximum <= longest:
        return sizes
    maximum = longest - longest % sizes.minimum
    return replace(
        sizes, preferred=min(sizes.preferred, 1 << maximum.bit_length() - 1), maximum=maximum
    )
