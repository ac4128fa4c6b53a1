"""Pre-shared keys: psktool's file, and which user a client is.

The file is GnuTLS's (gnutls_psk_set_server_credentials_file, lib/auth/psk_passwd.c): lines of
`user:hexkey`, where a user that begins with "#" is written in hexadecimal. It has no comments. But to GnuTLS a
line that begins with "#" and is no such user never matches anybody, so people use such lines as comments. They
may do so here.

Which user is it? CPython's server callback (`SSLContext.set_psk_server_callback`, 3.13) is told an identity,
but not for which session. It is called inside `do_handshake`, on that call's thread. So a context that all
sessions share would have to keep the identity until somebody fetches it, at the right moment. A context for
each session costs 0.13 ms and 12 KiB (CPython 3.13, OpenSSL 3.0), less than the key exchange. So each session
has its own, whose callback notes the user in that session's `ClaimedUser`.

A claim is not a proof. If the context has a certificate, OpenSSL 3 asks the callback, finds that the key's hash
(SHA-256) is not that of the cipher suite it has chosen (AES-256-GCM-SHA384), and goes on *without the key*.
Then a client that has only named a user completes the handshake, unless a certificate is required. Hence a
context with such a callback has no certificate: then only a key completes a handshake.
`gateway.tls.credentials` sees to that, and checks after the handshake that a key was used.

A peer must not learn which users there are. So an unknown user gets a key that nobody has, always the same one
for a name as long as the process lives (GnuTLS randomises, too). It fails where a wrong key fails, with the
same alert, after the same work: an HMAC of the name, one look into a table by that HMAC, and the derivation of
the key that nobody has, which is done for known users as well.
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
"""Every OpenSSL takes so many (PSK_MAX_IDENTITY_LEN was 128 before 3.0), and RFC 4279, 5.3, wants them."""

_EXPECTED = "lines of user:hexkey, as psktool writes them"
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")


class ClaimedUser:
    """The user that one session's client claims to be; None until it has done so. The last claim counts: after
    a HelloRetryRequest (RFC 8446, 4.1.2) the client repeats it.
    """

    def __init__(self) -> None:
        self.user: str | None = None


class Keys:
    """The users of one file, and their keys. Its repr shows neither."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._secret = secrets.token_bytes(32)
        self._keys = {self._digest(user): key for user, key in keys.items()}
        self.users = tuple(keys)

    def key_of(self, user: str | None) -> bytes:
        """Give a user's key, or for an unknown user a key that nobody has. Both take the same time."""
        name = "" if user is None else user
        nobodys = hmac.digest(self._secret, b"key:" + name.encode(), hashlib.sha256)
        return self._keys.get(self._digest(name), nobodys)

    def only_user(self) -> str | None:
        """Give the user of a file that has just one."""
        return self.users[0] if len(self.users) == 1 else None

    def knows(self, user: str) -> bool:
        """Say whether there is such a user. For configurations only: a peer must not learn it."""
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
    # CPython gives the callback text, and to C a NUL is its end.
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
    """Make a server's context ask for a key, and give the `ClaimedUser` that will say whose. A context is for
    one session.
    """
    claim = ClaimedUser()

    def key_of(user: str | None) -> bytes:
        claim.user = user
        return keys.key_of(user)

    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(key_of)
    return claim


def offer_key(context: ssl.SSLContext, user: str, key: bytes) -> ClaimedUser:
    """Make a client's context offer a key. We are the user that is claimed, in all sessions."""
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda hint: (user, key))
    claim = ClaimedUser()
    claim.user = user
    return claim
