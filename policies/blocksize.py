"""Tell clients what block sizes to use, and hold them to it.

A client that asks for block sizes is told these: the smallest request (offsets and lengths have to be
multiples of it), the size that is best, and the longest READ or WRITE. What is not given is taken from the
disk, and adjusted to what is given. With `enforce`, a request that does not keep to them gets EINVAL, also
from a client that did not ask. Without it they are only told, and no request is refused for them.

`minimum` may be smaller than the server's: the gateway then reads, changes and writes whole blocks. Where
something behind this policy takes whole blocks only (`unaligned = "error"`, another `blocksize`), a smaller
one is impossible, and the client is refused with both numbers; a larger one is enforced there whatever
`enforce` says. A `maximum` that is larger than what is behind is lowered to that. The size that a client sees
is a multiple of `minimum`: a shorter tail cannot be reached, unless `truncate` with `round-up` stands behind
this policy.

Like nbdkit's blocksize-policy filter, which does not enforce by default.

    policies = [ { use = "blocksize", minimum = 4096, preferred = "64K", maximum = "1M" } ]
"""

from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, model_validator

from gateway.policy import BlockSizes, Cmd, Denied, Field, Policy, Size, Table, View, format_size

# "Size constraints" in proto.md.
_LARGEST_MINIMUM = 64 << 10
_SMALLEST_PREFERRED = 512

_LARGEST_PREFERRED = 32 << 20
"""nbdkit's own bound, and the payload that everybody takes."""

_LARGEST_MAXIMUM = 64 << 20
"""The gateway takes no longer payload."""


def _power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _minimum(number: int) -> int:
    if not _power_of_two(number) or number > _LARGEST_MINIMUM:
        raise ValueError(f"expected a power of two from 1 to 64K, got {format_size(number)}")
    return number


def _preferred(number: int) -> int:
    if not _power_of_two(number) or not _SMALLEST_PREFERRED <= number <= _LARGEST_PREFERRED:
        raise ValueError(f"expected a power of two from 512 to 32M, got {format_size(number)}")
    return number


def _maximum(number: int) -> int:
    if not _SMALLEST_PREFERRED <= number <= _LARGEST_MAXIMUM:
        raise ValueError(f"expected 512 to 64M, got {format_size(number)}")
    return number


class Blocksize(Policy):
    """`use = "blocksize"`."""

    minimum: Annotated[Size, AfterValidator(_minimum)] | None = Field(
        default=None,
        description="What offsets and lengths are multiples of: a power of two up to 64K.",
    )
    preferred: Annotated[Size, AfterValidator(_preferred)] | None = Field(
        default=None,
        description="The size that is best: a power of two, at least 512 and `minimum`.",
    )
    maximum: Annotated[Size, AfterValidator(_maximum)] | None = Field(
        default=None,
        description="The longest READ or WRITE: a multiple of `minimum`, at least `preferred`.",
    )
    enforce: bool = Field(
        default=True, description="Whether a request that does not keep to these gets EINVAL."
    )

    @model_validator(mode="after")
    def _sizes_agree(self) -> "Blocksize":
        if self.minimum is None and self.preferred is None and self.maximum is None:
            raise ValueError("expected minimum, preferred or maximum, got none of them")
        wrong = _disagreement(self.minimum, self.preferred, self.maximum)
        if wrong:
            raise ValueError(wrong)
        return self

    def describe(self, view: View) -> View:
        """Give the export with its new block sizes."""
        behind = view.block_sizes
        minimum = behind.minimum if self.minimum is None else self.minimum
        if minimum < behind.minimum and not view.any_alignment:
            raise Denied(
                f"blocks of {minimum} bytes cannot be had: what is behind takes"
                f" whole blocks of {behind.minimum}"
            )
        maximum = behind.maximum if self.maximum is None else min(self.maximum, behind.maximum)
        maximum -= maximum % minimum
        preferred = self.preferred
        if preferred is None:
            preferred = max(_SMALLEST_PREFERRED, minimum, min(behind.preferred, _floor(maximum)))
        wrong = _disagreement(minimum, preferred, maximum)
        if wrong:
            raise Denied(f"with what is behind ({_told(behind)}): {wrong}")
        any_alignment = view.any_alignment and not self.enforce
        sizes = BlockSizes(minimum, preferred, maximum)
        reaches_tail = view.reaches_tail and minimum == behind.minimum
        return replace(
            view, block_sizes=sizes, any_alignment=any_alignment, reaches_tail=reaches_tail
        )

    def commands(self, table: Table) -> None:
        """Limit what carries data; the alignment is held to by what is described."""
        if self.enforce and self.maximum is not None:
            text = f"at most {self.maximum} bytes are taken"
            table.limit_length(Cmd.READ, self.maximum, text=text)
            table.limit_length(Cmd.WRITE, self.maximum, text=text)


def _disagreement(minimum: int | None, preferred: int | None, maximum: int | None) -> str | None:
    """Say what is wrong with sizes that are each right; None stands for one that is not known yet."""
    minimum = minimum or 1
    if preferred is not None and preferred < minimum:
        return f"expected preferred of at least minimum, {minimum}, got {preferred}"
    if maximum is not None and maximum < (preferred or minimum):
        return f"expected maximum of at least {preferred or minimum}, got {maximum}"
    if maximum is not None and maximum % minimum:
        return f"expected maximum to be a multiple of minimum, {minimum}, got {maximum}"
    return None


def _floor(number: int) -> int:
    """Give the largest power of two that is not larger."""
    return 1 << number.bit_length() >> 1


def _told(sizes: BlockSizes) -> str:
    return f"minimum {sizes.minimum}, preferred {sizes.preferred}, maximum {sizes.maximum}"
