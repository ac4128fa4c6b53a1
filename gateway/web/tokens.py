"""The file of tokens: who may look, and who may do everything.

    # a comment
    look prometheus 5f0c9a...
    full ops        0b77e1...

A token is the whole proof of who it is, so it has to be long and of chance (`openssl rand -hex 32`), and the
file may be its owner's alone. A file that is wrong is refused as a whole: nobody should find out at night that
his line was passed over.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from gateway.tls.errors import CredentialsError
from gateway.tls.reading import read
from gateway.web.doors import Role

LEAST_TOKEN_CHARACTERS = 20
"""Of hexadecimal digits, these are 80 bits: nobody guesses that over HTTP. 32 and more are recommended."""

MOST_TOKENS = 1000
"""Each request is compared with all of them, whether one fits or not."""

EXPECTED = 'lines of "look NAME TOKEN" or "full NAME TOKEN"'

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""What a header may carry (RFC 6750, 2.1)."""

_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token, of which only the digest is kept."""

    name: str
    role: Role
    digest: bytes


class Tokens:
    """The tokens of one file."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, shown: str) -> Token | None:
        """Give the token that was shown. It takes as long for one that there is not."""
        digest = _digest(shown)
        found = None
        for each in self._tokens:
            if hmac.compare_digest(each.digest, digest):
                found = each
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def load_tokens(path: Path) -> Tokens:
    """Read a file. Raises `CredentialsError`, which names the line and never shows a token."""
    content = read(path, EXPECTED, secret=True)
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise CredentialsError(path, f"is not UTF-8; expected {EXPECTED}") from None
    found: dict[str, Token] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            token = _token_of(path, number, words)
            if token.name in found:
                raise CredentialsError(path, f"line {number}: {token.name} has a token already")
            found[token.name] = token
    if len({each.digest for each in found.values()}) < len(found):
        raise CredentialsError(path, "two names have one token: nobody could tell them apart")
    if not found or len(found) > MOST_TOKENS:
        raise CredentialsError(path, f"has {len(found)} tokens, expected 1 to {MOST_TOKENS}")
    return Tokens(tuple(found.values()))


def _token_of(path: Path, number: int, words: list[str]) -> Token:
    if len(words) != 3 or words[0] not in tuple(Role):
        raise CredentialsError(path, f"line {number}: expected {EXPECTED}")
    role, name, token = words
    if not _NAME.fullmatch(name):
        raise CredentialsError(path, f"line {number}: a name has letters, digits and . _ - @")
    if not _TOKEN.fullmatch(token):
        raise CredentialsError(
            path, f"line {number}: a token has letters, digits and . _ ~ + / = -"
        )
    if len(token) < LEAST_TOKEN_CHARACTERS:
        why = f"line {number}: expected a token of {LEAST_TOKEN_CHARACTERS} characters or more"
        raise CredentialsError(path, f"{why} (openssl rand -hex 32 makes one), got {len(token)}")
    return Token(name, Role(role), _digest(token))
