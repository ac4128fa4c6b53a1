"""Choose which exports a client sees, and what they are called.

A client can list and open an export if its name matches a pattern of `allow` and none of `deny`; any other is
as if it did not exist. Patterns are those of a shell (`*`, `?`, `[...]`) and tell capital from small letters.
The default export "" is a name like any other, and `*` matches it.

`rename` gives an export another name: the client sees the new name in LIST and asks for it, and the old one
does not exist for that client. Two exports can swap their names. If another export of ours has the new name
already, that one is hidden. `describe` sets the text beside a name in LIST.

All names here, except for the new ones, are ours: those of the configuration, or those that the policy behind
this one passes on. A client can open what LIST shows, and nothing else by this policy, except at servers that
do not list all that they have.

Like nbdkit's exportname filter.

    policies = [ { use = "exports", rename = { "vm-1" = "disk" }, describe = { "vm-1" = "VM 1" } } ]
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Self

from pydantic import model_validator

from gateway.policy import Field, ListedExport, Policy

_WILD = frozenset("*?[")

_LONGEST_BYTES = 4096
"""proto.md's longest string: clients end over a LIST that has a longer one."""


class Exports(Policy):
    """`use = "exports"`."""

    allow: list[str] = Field(
        default=["*"], description="Patterns of names, one of which has to match."
    )
    deny: list[str] = Field(default=[], description="Patterns of names, none of which may match.")
    rename: dict[str, str] = Field(
        default={}, description="Our name, and what the client calls it."
    )
    texts: dict[str, str] = Field(
        default={},
        alias="describe",  # `describe` is a hook
        description="Our name, and the text beside it in LIST.",
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        for text in (*self.rename.values(), *self.texts.values()):
            if len(text.encode()) > _LONGEST_BYTES:
                raise ValueError(
                    f'expected at most {_LONGEST_BYTES} bytes, got {len(text.encode())}: "{text[:16]}..."'
                )
        ours: dict[str, str] = {}
        for name, new in self.rename.items():
            if new in ours:
                raise ValueError(f'"{ours[new]}" and "{name}" are both renamed to "{new}"')
            if not self._allowed(name):
                raise ValueError(f'"{name}" is renamed to "{new}", and not allowed')
            ours[new] = name
        for name in (*self.allow, *self.texts):
            if name in ours and name not in self.rename and not _WILD & set(name):
                raise ValueError(
                    f'"{ours[name]}" is renamed to "{name}", which is the name of another export that is'
                    " allowed or described here"
                )
        for name in self.texts:
            if not self._allowed(name):
                raise ValueError(f'"{name}" is described, and not allowed')
        return self

    def mistakes(self, exports: Collection[str]) -> Iterable[str]:
        """Find names that mean none of the exports: a misspelt `deny` would deny nothing."""
        for pattern in dict.fromkeys((*self.allow, *self.deny, *self.rename, *self.texts)):
            if not any(fnmatchcase(name, pattern) for name in exports):
                close = get_close_matches(pattern, exports, n=1)
                hint = f', did you mean "{close[0]}"?' if close else ""
                yield f'no [[export]] has a name like "{pattern}"{hint}'

    def asked(self, name: str) -> str | None:
        """Give our name for the client's."""
        for ours, new in self.rename.items():
            if new == name:
                return ours
        return name if name not in self.rename and self._allowed(name) else None

    def exports(self, listed: Sequence[ListedExport]) -> Sequence[ListedExport]:
        """Give what is visible, under the client's names."""
        return [
            replace(
                export,
                name=self.rename.get(export.name, export.name),
                description=self.texts.get(export.name, export.description),
            )
            for export in listed
            if self._visible(export.name)
        ]

    def _visible(self, ours: str) -> bool:
        if ours in self.rename:
            return True
        # A name that was given to another export leads there.
        return self._allowed(ours) and ours not in self.rename.values()

    def _allowed(self, ours: str) -> bool:
        return _matches(ours, self.allow) and not _matches(ours, self.deny)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
