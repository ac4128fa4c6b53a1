"""Mask transmission flags, or let nobody in without them.

Flags are named as in proto.md, without NBD_FLAG_. A flag of `mask` is not offered, and what it would have
promised is refused; masking SEND_WRITE_ZEROES masks SEND_FAST_ZERO as well. If a flag of `require` is
missing, the client is refused and told which flags the export has: for operators who would rather have an
outage than a guest without discards.

Three kinds of mask put data at stake:

- SEND_FUA: the client has to FLUSH instead, which is slower and safe. Where the export has no SEND_FLUSH, a
  client could make nothing durable any more, and is refused.
- SEND_FLUSH: clients believe then that the disk has no cache. qemu answers its guest's flushes by itself, and
  Linux sends neither FLUSH nor FUA. To make this true, the gateway does every WRITE, WRITE_ZEROES and TRIM
  with FUA (write-through), which can be slow. Where the export has no SEND_FUA, the client is refused.
- `unsafe = true` masks both without any of this. What clients believe to be safe on the disk is lost when the
  server or its machine goes down: journals and databases with it. It is for disks that can be made again.

READ_ONLY and HAS_FLAGS cannot be masked: without the first, clients would be promised what is not there. To
make an export read-only, use `readonly`.

nbdkit has no such filter; its nozero, nocache and fua are `zero`, `cache` and `fua` here.

    policies = [ { use = "flags", mask = ["CAN_MULTI_CONN"], require = ["SEND_FLUSH"] } ]
"""

from difflib import get_close_matches
from typing import Annotated, Self

from pydantic import PlainValidator, WithJsonSchema, model_validator

from gateway.policy import WRITE_CLASS, CmdFlag, Denied, Field, Flag, Policy, Table, View

_NAMES = [flag.name for flag in Flag if flag.name]

_NOT_MASKED = {
    Flag.READ_ONLY: "it would promise writes that are refused",
    Flag.HAS_FLAGS: "every export has it",
}

_NOT_WITH_READ_ONLY = Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO


def _flag(value: object) -> Flag:
    if isinstance(value, Flag):
        return value
    if value in _NAMES:
        return Flag[str(value)]
    close = get_close_matches(str(value).upper().removeprefix("NBD_FLAG_"), _NAMES, n=1)
    hint = f', did you mean "{close[0]}"?' if close else f" (there are {', '.join(_NAMES)})"
    raise ValueError(f'expected a transmission flag, got "{value}"{hint}')


_FlagName = Annotated[Flag, PlainValidator(_flag), WithJsonSchema({"enum": _NAMES})]


class Flags(Policy):
    """`use = "flags"`."""

    mask: list[_FlagName] = Field(default=[], description="Flags that are not offered.")
    require: list[_FlagName] = Field(
        default=[], description="Flags without which the client does not get the export."
    )
    unsafe: bool = Field(
        default=False,
        description="Mask SEND_FLUSH and SEND_FUA even if nothing is durable for a client then.",
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        for flag in self.mask:
            if flag in _NOT_MASKED:
                raise ValueError(f"{flag.name} cannot be masked: {_NOT_MASKED[flag]}")
            if flag in self.require:
                raise ValueError(f"expected {flag.name} in mask or in require, got it in both")
        return self

    def describe(self, view: View) -> View:
        """Give the view without what is masked, if it has what is required."""
        offered = _offered(view)
        for flag in self.require:
            if not offered & flag:
                has = ", ".join(name for name in _NAMES if offered & Flag[name])
                raise Denied(f"flags: {flag.name} is required here, and the export has {has}")
        if not self.unsafe and not view.allows(Flag.READ_ONLY):
            self._keep_durable(view)
        return view.without(*self.mask)

    def _keep_durable(self, view: View) -> None:
        if Flag.SEND_FLUSH in self.mask:
            # Write-through, see `commands`. An export with neither flag cannot do that either.
            if not view.allows(Flag.SEND_FUA):
                raise Denied(
                    "flags: SEND_FLUSH is masked, and the export has no SEND_FUA to write through with"
                )
        elif (
            Flag.SEND_FUA in self.mask
            and view.allows(Flag.SEND_FUA)
            and not view.allows(Flag.SEND_FLUSH)
        ):
            raise Denied("flags: SEND_FUA is masked, and the export has no SEND_FLUSH instead")

    def commands(self, table: Table) -> None:
        """Write through if the client cannot FLUSH."""
        if Flag.SEND_FLUSH in self.mask and not self.unsafe:
            for command in WRITE_CLASS:
                table.add_flag(command, CmdFlag.FUA)


def _offered(view: View) -> int:
    """Give the flags that a client can be offered of a view: those that contradict no other."""
    flags = Flag(view.flags)
    if flags & Flag.READ_ONLY:
        flags &= ~_NOT_WITH_READ_ONLY
    if not flags & Flag.SEND_WRITE_ZEROES:
        flags &= ~Flag.SEND_FAST_ZERO
    return int(flags)
