"""Files of credentials are read whole, up to a bound, without ever waiting, and refused in plain words."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from gateway.there import status_of, unseen
from gateway.tls.errors import CredentialsError

MAX_FILE_BYTES = 1 << 20
"""A system's whole bundle of CAs has a quarter of this. /dev/zero, given by mistake, has no end."""

MAX_TOLD_CHARACTERS = 200
"""How much we tell of what a certificate says: the peer's own words, as long as it likes."""

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a certificate that is malformed, or of an unknown kind."""


def read(path: Path, expected: str, *, secret: bool = False) -> bytes:
    """Give a file's bytes. `expected` says what it should be: "the CA's certificate, PEM".

    A `secret` file is refused if anybody but its owner can get at it. Its group may read it if the file belongs
    to root and we are not root: so service managers hand out secrets (PostgreSQL has the same rule for its
    keys).

    Raises `CredentialsError`.
    """
    try:
        # Without O_NONBLOCK, a pipe would keep us waiting for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CredentialsError(path, f"cannot be read: {reason}; expected {expected}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CredentialsError(path, f"is no regular file; expected {expected}")
        if secret:
            _check_private(path, status)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CredentialsError(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise CredentialsError(path, f"is larger than 1 MiB; expected {expected}")
    return content


def is_there(path: Path) -> bool:
    """Say whether there is such a file. Raises `CredentialsError` if we cannot see that, or may not."""
    try:
        return status_of(path) is not None
    except OSError as error:
        raise CredentialsError(path, unseen(error)) from None


def exposed(path: Path) -> str | None:
    """Warn if anybody on this machine can get at a key. Its group may: whoever allows that means to."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None  # it was there a moment ago; to load it will raise
    if not mode & (stat.S_IROTH | stat.S_IWOTH):
        return None
    return (
        f"{path}: anybody on this machine can get at this key (mode {mode:04o}); chmod 600 it, and make a"
        " new one if somebody may have read it"
    )


def _check_private(path: Path, status: os.stat_result) -> None:
    groups_too = status.st_uid == 0 and os.geteuid() != 0
    mode = stat.S_IMODE(status.st_mode)
    if mode & (0o037 if groups_too else 0o077):
        raise CredentialsError(
            path,
            f"others than its owner can get at these keys (mode {mode:04o}, expected 0600, as psktool"
            " makes it); chmod 600 it, and make new keys if somebody may have read them",
        )
