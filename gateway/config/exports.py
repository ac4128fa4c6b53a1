"""What `[[export]]` says, and a ticket, which is an export that is made at run time; and where names lead."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from gateway.config.base import Section, text, written_as
from gateway.config.rules import Use, Uses, Who
from gateway.config.values import Name
from gateway.uri import check_name

Unaligned = Literal["rmw", "refuse", "error"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where one export name of ours leads: the upstream (a key of `Config.upstream`), the name there."""

    upstream: str
    upstream_name: str
    description: str | None
    unaligned: Unaligned = "rmw"
    synthesise_allocation: bool = False
    read_only: bool = False
    stable_contexts_only: bool = False
    tls_required: bool = False
    uses: tuple[Use, ...] = ()
    """The export's own policies."""
    hide: bool = False
    """To whom it is denied, there is no such export."""
    place: int | str = 0
    """Which of `Config.exports` it comes from; of a ticket, its name."""
    ticket: "Ticket | None" = None
    """The ticket that it comes from."""


def _description(value: object) -> str:
    return check_name(text(value), text(value), what="a description")


Description = Annotated[str, *written_as(_description)]


def exact_name(pattern: str) -> str | None:
    """Give the only name that a pattern matches; None if there are more. `vm[*]` is the exact name `vm*`."""
    literal = re.sub(r"\[([*?\[])\]", "", pattern)
    if re.search(r"[*?]|\[.*\]", literal):
        return None
    return re.sub(r"\[([*?\[])\]", r"\1", pattern)


class Contexts(Section):
    """`contexts` of `[[export]]`: which meta contexts are offered."""

    stable_only: bool = Field(
        default=False,
        description="Hide what may change while a client reads it: dirty bitmaps of a writable disk, from those"
        " for whom it is read-only.",
    )


class Export(Section):
    """`[[export]]`: names that clients may ask for, and where they lead. The first match wins."""

    name: Name = Field(
        description='The name that clients ask for, or a pattern with * ? [abc]; "" is the default export.'
    )
    upstream: str = Field(description="The NAME of one [upstream.NAME].")
    upstream_name: Name | None = Field(
        default=None,
        description="The name to ask the server for. Default: the one that the client asked for.",
    )
    description: Description | None = Field(
        default=None, description="Text that a list of exports shows for this name."
    )

    unaligned: Unaligned = Field(
        default="rmw",
        description="What to do where the server's blocks are larger than a byte: rmw serves requests of any"
        " alignment by reading, changing and writing whole blocks; refuse turns away clients that do not ask"
        " for block sizes; error answers unaligned requests with EINVAL.",
    )
    synthesise_allocation: bool = Field(
        default=False,
        description="Offer base:allocation where the server has none, with all of the disk allocated.",
    )
    tls: Literal["require"] | None = Field(
        default=None,
        description='"require": only for clients over TLS; others are not shown it either.',
    )
    read_only: bool = Field(default=False, description="Refuse whatever would change the disk.")
    contexts: Contexts = Field(default_factory=lambda: Contexts())
    policies: Uses = Field(
        default=(), description="Policies for every client, behind those of the rule that matches."
    )
    hide: bool = Field(
        default=False, description="To whom it is denied, there is no such export at all."
    )

    def model_post_init(self, _context: object) -> None:
        """Find out what it matches while files are read: who shows a thousand exports has no time for it."""
        self.__dict__["exact_name"] = exact_name(self.name)  # as `cached_property` does it

    @cached_property
    def exact_name(self) -> str | None:
        """The only name that this matches; None for a pattern."""
        return exact_name(self.name)


class Ticket(Export):
    """An export that is made at run time. Its name is no pattern."""

    who: Who = Field(
        default_factory=lambda: Who(), description="Whom it is for. Default: everybody."
    )
    # Names of tickets are often all that somebody has to know: none is confirmed to whom it is not for.
    hide: bool = Field(
        default=True, description="To whom it is denied, there is no such export at all."
    )
    once: bool = Field(default=False, description="It ends with its first use.")


class NoTicket(Exception):
    """What is said makes no ticket; each of `problems` says why."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


class NeverTicket(NoTicket):
    """The same, whatever there is in the configuration, and beside it: it makes no sense."""
