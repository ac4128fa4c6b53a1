"""A certificate authority for trying things out: its key lies beside the certificates. The files are such as
`gateway.tls.certificates` reads; one directory serves a server and a client. `issuing` makes what is in them.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.tls.certificates import CA_CRL
from gateway.tls.errors import CredentialsError
from gateway.tls.issuing import (
    Issued,
    client_files,
    is_issued,
    issue,
    issued_again,
    list_of_revoked,
    new_authority,
    pem_of,
    subject_of,
)
from gateway.tls.psk import MAX_USER_BYTES
from gateway.tls.reading import UNREADABLE, is_there, read
from gateway.whole import write_whole

_T = TypeVar("_T")

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

DEFAULT_CLIENT = "client"

CLIENT_CERT = "client-cert.pem"

ISSUED = "ca-issued.txt"
"""Every certificate that the authority has issued to a client: its number and name, for `revoked`. The files
alone are not enough: a client's may have been moved to where it runs, and an old certificate that was renewed
is good until it ends.
"""


PSK_BYTES = 32
"""As psktool."""


def make_pki(
    hosts: Iterable[str],
    clients: Iterable[str],
    psk_users: Iterable[str],
    *,
    days: int,
    now: datetime,
) -> dict[str, bytes]:
    """Give the files of a new authority, by their paths below its directory.

    The server's certificate is for `hosts` (names and IP addresses) and for this machine. The first of
    `clients` (default: "client") has its certificate beside the server's; each further one has a directory of
    its name. All are valid for `days` from `now`, which has a time zone. `psk_users` get keys in keys.psk.

    Raises `CredentialsError` for a name that cannot be in a certificate.
    """
    ca = new_authority(days, now)
    names = list(dict.fromkeys([*hosts, *LOCAL_NAMES]))
    first, *more = list(dict.fromkeys(clients)) or [DEFAULT_CLIENT]
    files = ca.files("ca")
    files |= issue(ca, names[0], names, ExtendedKeyUsageOID.SERVER_AUTH, days, now).files("server")
    files |= client_files(ca, first, days, now)
    for client in more:
        if client.endswith((".pem", ".psk")):
            raise CredentialsError(None, f"a client cannot be called {client}, as a file would be")
        own = {"ca-cert.pem": files["ca-cert.pem"]} | client_files(ca, client, days, now)
        files |= {f"{client}/{name}": content for name, content in own.items()}
    files[ISSUED] = _record(_clients(files))
    if users := list(dict.fromkeys(psk_users)):
        lines = [f"{_psk_user(user)}:{secrets.token_hex(PSK_BYTES)}\n" for user in users]
        files["keys.psk"] = "".join(lines).encode()
    return files


def add_client(directory: Path, client: str, *, days: int, now: datetime) -> dict[str, bytes]:
    """Give the files of one more client of an existing authority, by their paths below its directory. Raises
    `CredentialsError`.
    """
    ca = _there(directory)
    own = {"ca-cert.pem": pem_of(ca.certificate)} | client_files(ca, client, days, now)
    files = {f"{client}/{name}": content for name, content in own.items()}
    return {ISSUED: _record(_issued_before(directory) | _clients(files))} | files


def renewed(directory: Path, *, days: int, now: datetime) -> dict[str, bytes]:
    """Give the certificates of an authority anew, its own as well, valid for `days` from `now`, with the same
    keys and names. An old certificate stays valid until it ends. What was revoked is not renewed, nor is what
    another authority has issued. The record comes first, so that it is written before the certificates it tells
    of. Raises `CredentialsError`.
    """
    ca = _there(directory)
    again = Issued(issued_again(ca.certificate, ca, days, now), ca.key)
    gone = _revoked_there(directory)
    files: dict[str, bytes] = {}
    issued = _issued_before(directory)
    for path in sorted(directory.rglob("*-cert.pem")):
        certificate = _certificate(path)
        if not is_issued(certificate, ca.certificate):
            continue
        name = str(path.relative_to(directory))
        if path.name == "ca-cert.pem":
            certificate = again.certificate
        elif certificate.serial_number not in gone:
            issued |= _clients({name: pem_of(certificate)})
            certificate = issued_again(certificate, again, days, now)
        files[name] = pem_of(certificate)
    files = {ISSUED: _record(issued | _clients(files))} | files
    if gone:
        files[CA_CRL] = list_of_revoked(again, gone, now)
    return files


def revoked(directory: Path, client: str, *, now: datetime) -> dict[str, bytes]:
    """Give the list of what an authority has revoked, and add every certificate that it has ever issued to this
    client, also those whose files are gone. The list is valid as long as the authority is. Raises
    `CredentialsError`.
    """
    ca = _there(directory)
    issued = _issued_before(directory)
    for path in (directory / client / CLIENT_CERT, directory / CLIENT_CERT):
        if is_there(path) and is_issued(certificate := _certificate(path), ca.certificate):
            issued[certificate.serial_number] = certificate.subject
    serials = [serial for serial, subject in issued.items() if subject == subject_of(client)]
    if not serials:
        raise CredentialsError(directory, f"has no certificate of a client called {client}")
    gone = _revoked_there(directory)
    for serial in serials:
        gone.setdefault(serial, now)
    return {CA_CRL: list_of_revoked(ca, gone, now)}


def _clients(files: Mapping[str, bytes]) -> dict[int, x509.Name]:
    """Give the numbers and names of the clients' certificates among files."""
    pems = [pem for name, pem in files.items() if Path(name).name == CLIENT_CERT]
    certificates = [x509.load_pem_x509_certificate(pem) for pem in pems]
    return {one.serial_number: one.subject for one in certificates}


def _record(issued: Mapping[int, x509.Name]) -> bytes:
    lines = [f"{serial:x} {name.rfc4514_string()}\n" for serial, name in issued.items()]
    return "".join(lines).encode()


def _revoked_there(directory: Path) -> dict[int, datetime]:
    """Give the numbers of certificates that are on the list, and since when."""
    path = directory / CA_CRL
    if not is_there(path):
        return {}
    return {
        one.serial_number: one.revocation_date_utc
        for one in _readable(path, x509.load_pem_x509_crl)
    }


def _issued_before(directory: Path) -> dict[int, x509.Name]:
    """Read what `_record` has made. A directory from before there were records has none."""
    path = directory / ISSUED
    if not is_there(path):
        return {}
    lines = read(path, "a file that `nbd-gateway pki` has made").decode().splitlines()
    try:
        words = [line.split(" ", 1) for line in lines]
        return {int(serial, 16): x509.Name.from_rfc4514_string(name) for serial, name in words}
    except ValueError:
        raise CredentialsError(path, "is not what `nbd-gateway pki` writes") from None


def replace_pki(directory: Path, files: Mapping[str, bytes]) -> None:
    """Replace files by those of `renewed` or `revoked`, each at once: a server that reads a file meanwhile
    finds the old one or the new one. Raises `CredentialsError`.
    """
    _write(directory, files, replacing=files)


def _there(directory: Path) -> Issued:
    """Give the authority that `make_pki` has made."""
    key = _readable(directory / "ca-key.pem", lambda pem: load_pem_private_key(pem, None))
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialsError(directory / "ca-key.pem", "is no key that `pki init` has made")
    return Issued(_certificate(directory / "ca-cert.pem"), key)


def _certificate(path: Path) -> x509.Certificate:
    return _readable(path, x509.load_pem_x509_certificate)


def _readable(path: Path, load: Callable[[bytes], _T]) -> _T:
    content = read(path, "a file that `nbd-gateway pki init` has made")
    try:
        return load(content)
    except UNREADABLE as error:
        why = str(error).partition("\n")[0]
        raise CredentialsError(path, f"cannot be understood: {why}") from None


def write_client(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of `add_client` like `write_pki`, but replace the record. Raises `CredentialsError`."""
    _write_new(directory, files, replacing=[ISSUED])


def write_pki(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of `make_pki` into a directory: 0700, and 0600 for the files.

    No file is ever overwritten: if any of them is there already, or there is no room for all, none is written.
    Raises `CredentialsError`.
    """
    _write_new(directory, files)


def _write_new(
    directory: Path, files: Mapping[str, bytes], replacing: Collection[str] = ()
) -> None:
    """Write files, and make the directories that they are in. Only files that `replacing` names may be there
    already. If this fails, nothing of it is left. Raises `CredentialsError`.
    """
    there = [name for name in files if name not in replacing and os.path.lexists(directory / name)]
    if there:
        raise CredentialsError(directory, _not_over(directory, there))
    made: list[Path] = []
    try:
        for path in [
            directory,
            *sorted({(directory / name).parent for name in files} - {directory}),
        ]:
            _make_directory(path, made)
        _write(directory, files, replacing)
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):  # somebody has put something there meanwhile
                path.rmdir()
        raise


def _not_over(directory: Path, there: Sequence[str]) -> str:
    """Say what keeps files from being written, and what can be done about it."""
    sizes = {name: (directory / name).lstat().st_size for name in there}
    names = ", ".join(name if size else f"{name} (empty)" for name, size in sizes.items())
    return f"has {names} already, and nothing is overwritten; if a try has failed, remove what it has left"


def _make_directory(path: Path, made: list[Path]) -> None:
    """Make a directory, and those above it; note in `made` which were not there. Raises `CredentialsError`."""
    try:
        missing = [each for each in (path, *path.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(mode=0o700 if each == path else 0o777)
            made.append(each)
    except (OSError, ValueError) as error:
        raise CredentialsError(path, f"cannot be made: {_reason(error)}") from None
    if not path.is_dir():
        raise CredentialsError(path, "is no directory")


def _write(directory: Path, files: Mapping[str, bytes], replacing: Collection[str]) -> None:
    contents = {directory / name: content for name, content in files.items()}
    try:
        write_whole(contents, mode=0o600, replacing=[directory / name for name in replacing])
    except OSError as error:
        path = Path(os.fsdecode(error.filename))
        raise CredentialsError(path, f"cannot be written: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _psk_user(user: str) -> str:
    if not 0 < len(user.encode()) <= MAX_USER_BYTES or not re.fullmatch(r"[^#:\s][^:\s]*", user):
        raise CredentialsError(
            None,
            f"a user of keys.psk has 1 to {MAX_USER_BYTES} bytes, no colon, no space, and no # at its"
            f" beginning, not {user!r}",
        )
    return user
