"""Pre-shared keys: psktool's file, and which user a session is of.

The file is GnuTLS's (gnutls_psk_set_server_credentials_file, lib/auth/psk_passwd.c): lines of
`user:hexkey`, where a user that begins with "#" is written in hexadecimal. There are no comments in it, but
a line that begins with "#" and is no such user never matches anybody there, so people use it as one; so may
they here.

Who it is. CPython's server callback (`SSLContext.set_psk_server_callback`, 3.13) is told an identity, and
not of which session. It is called inside `do_handshake`, on that call's thread, but a context that all
sessions share would have to keep the identity until somebody fetches it, and he must not miss the moment. A
context of its own for each session costs 0.13 ms and 12 KiB (CPython 3.13, OpenSSL 3.0), less than the key
exchange. So each has one, and its callback knows the session: a `ClaimedUser`.

A claim is not a proof. With a certificate in the context, OpenSSL 3 asks the callback, finds that the key's
hash (SHA-256) is not that of the cipher suite it has chosen (AES-256-GCM-SHA384), and goes on *without the
key*: the handshake of a client that has only named a user succeeds, if a certificate is not required.
Hence: the context of a claim has no certificate, and without one no handshake can end but by a key.
`gateway.tls.credentials` sees to it, and looks afterwards whether it was so.

Unknown users are given a key that nobody has, one and the same for a user as long as the process lives
(GnuTLS randomises, too). They fail where a wrong key fails, with the same alert, after the same work: an
HMAC of the name, one look into a table whose keys tell nothing, and the derivation of the key that nobody
has, which is done for those who are known as well.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from gateway.tls.errors import CredentialsError
from gateway.tls.reading import read

MIN_KEY_BYTES = 16
"""RFC 9257, 6: a key must have 128 bits of entropy. psktool makes 32 bytes."""

MAX_KEY_BYTES = 512
"""psktool makes none longer (`--keysize`), and OpenSSL 3 takes none longer (PSK_MAX_PSK_LEN)."""

MAX_USER_BYTES = 128
"""What every OpenSSL takes (PSK_MAX_IDENTITY_LEN was 128 before 3.0), and RFC 4279, 5.3 wants supported."""

_EXPECTED = "lines of user:hexkey, as psktool writes them"
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")


class ClaimedUser:
    """The user that one session's client says it is; None until it has said so.

    The last one counts: after a HelloRetryRequest (RFC 8446, 4.1.2) the client says it again.
    """

    def __init__(self) -> None:
        self.user: str | None = None


class Keys:
    """The users of one file, and their keys. Shows neither."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._secret = secrets.token_bytes(32)
        self._keys = {self._digest(user): key for user, key in keys.items()}
        self.users = tuple(keys)

    def key_of(self, user: str | None) -> bytes:
        """Give a user's key; for one that there is not, a key that nobody has. Takes the same time for both."""
        name = "" if user is None else user
        nobodys = hmac.digest(self._secret, b"key:" + name.encode(), hashlib.sha256)
        return self._keys.get(self._digest(name), nobodys)

    def only_user(self) -> str | None:
        """Give the user of a file that has just one."""
        return self.users[0] if len(self.users) == 1 else None

    def knows(self, user: str) -> bool:
        """Say whether there is such a user. For configurations; to peers the answer is a failed handshake."""
        return self._digest(user) in self._keys

    def _digest(self, user: str) -> bytes:
        return hmac.digest(self._secret, b"user:" + user.encode(), hashlib.sha256)


def load_keys(path: Path) -> Keys:
    """Read a PSK file. Raises `CredentialsError`, which never shows a key."""
    return Keys(parse_keys(read(path, _EXPECTED, secret=True), path))


def parse_keys(content: bytes, path: Path) -> dict[str, bytes]:
    """Give the keys of a PSK file's content by user, in the file's order. Raises `CredentialsError`."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        line = line.rstrip(b" \t\r")
        name, colon, key = line.partition(b":")
        raw = name.startswith(b"#")
        if not line or (raw and not (colon and _HEX.fullmatch(name[1:]))):
            continue
        if not colon:
            raise CredentialsError(path, f"line {number} has no colon; expected {_EXPECTED}")
        if not _HEX.fullmatch(key):
            raise CredentialsError(
                path, f"line {number}: expected the key in hexadecimal digits after the colon"
            )
        user = _user(bytes.fromhex(name[1:].decode()) if raw else name, path, number)
        if user in keys:
            raise CredentialsError(path, f"line {number}: its user has a key in a line above")
        keys[user] = _key(bytes.fromhex(key.decode()), path, number)
    if not keys:
        raise CredentialsError(path, f"has no key in it; expected {_EXPECTED}")
    return keys


def _user(name: bytes, path: Path, number: int) -> str:
    # CPython gives the callback text, and C takes NUL for its end.
    try:
        user = name.decode()
    except UnicodeDecodeError:
        raise CredentialsError(path, f"line {number}: the user is not UTF-8") from None
    if not user or "\0" in user or len(name) > MAX_USER_BYTES:
        raise CredentialsError(
            path, f"line {number}: expected a user of 1 to {MAX_USER_BYTES} bytes, none of them NUL"
        )
    return user


def _key(key: bytes, path: Path, number: int) -> bytes:
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise CredentialsError(
            path,
            f"line {number}: expected a key of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, this one has"
            f" {len(key)}",
        )
    return key


# ---- contexts ----


def check_supported(path: Path) -> None:
    """Raise `CredentialsError` where this Python cannot do PSK."""
    if sys.version_info < (3, 13):
        version = ".".join(map(str, sys.version_info[:2]))
        raise CredentialsError(
            path,
            f"PSK needs CPython 3.13 or later; this is {version}. Use certificates, or a newer one",
        )
    if not ssl.HAS_PSK:
        raise CredentialsError(
            path, f"PSK is not part of this Python's TLS ({ssl.OPENSSL_VERSION})"
        )


def claim_of(context: ssl.SSLContext, keys: Keys) -> ClaimedUser:
    """Make a server's context ask for a key, and give where it will be known whose. One context, one
    session.
    """
    claim = ClaimedUser()

    def key_of(user: str | None) -> bytes:
        claim.user = user
        return keys.key_of(user)

    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(key_of)
    return claim


def offer_key(context: ssl.SSLContext, user: str, key: bytes) -> ClaimedUser:
    """Make a client's context offer a key. The claim is ours, for all sessions."""
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda hint: (user, key))
    claim = ClaimedUser()
    claim.user = user
    return claim
