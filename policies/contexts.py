"""Allow and deny meta contexts by name.

A client can list and select a context if its name matches a pattern of `allow` and none of `deny`. Patterns
are those of a shell (`*`, `?`, `[...]`) and tell capital from small letters; `*` stands for anything, colons
and slashes too.

What becomes of a client that asks for a denied context by its name:

    denied = "omit"   an answer without it, as from a server that does not have it
    denied = "fail"   an error (ERR_POLICY), and no context at all

Without `denied` it is "fail" for names that begin with `qemu:`, and "omit" for all others. The reason is qemu
3.0: if it asks for a dirty bitmap and does not get it, it takes everything for clean, and an incremental
backup comes out empty without an error. `denied = "omit"` takes that risk; "fail" for all names breaks
clients that ask for `base:allocation` and could do without.

nbdkit's noextents filter hides `base:allocation`: `allow = []` hides everything.

    policies = [ { use = "contexts", allow = ["base:allocation", "qemu:dirty-bitmap:backup-*"] } ]
"""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal

from gateway.policy import Denied, Field, Policy, View

_FAILS = "qemu:"
"""Names that begin like this are better refused than left out."""


class Contexts(Policy):
    """`use = "contexts"`."""

    allow: list[str] = Field(
        default=["*"], description="Patterns of names, one of which has to match."
    )
    deny: list[str] = Field(default=[], description="Patterns of names, none of which may match.")
    if_denied: Literal["omit", "fail"] | None = Field(
        default=None,
        alias="denied",  # `denied` is a hook
        description='Leave a denied context out, or refuse the client; by default "fail" for qemu:.',
    )

    def context(self, name: str) -> bool:
        """Say whether a context may be had."""
        if self._allowed(name):
            return True
        if self.if_denied == "fail" or (self.if_denied is None and name.startswith(_FAILS)):
            raise Denied(f"contexts: {name} is denied here")
        return False

    def describe(self, view: View) -> View:
        """Give the view without the contexts that are denied."""
        return replace(view, contexts=frozenset(filter(self._allowed, view.contexts)))

    def _allowed(self, name: str) -> bool:
        return _matches(name, self.allow) and not _matches(name, self.deny)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
