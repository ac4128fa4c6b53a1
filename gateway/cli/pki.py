"""nbd-gateway pki: certificates for trying TLS out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING
from urllib.parse import quote as percent_encoded

from cyclopts import App

from gateway.cli import UsageError, complain

if TYPE_CHECKING:
    from datetime import datetime

pki = App(name="pki", help="Make certificates and keys for trying TLS out.")

MAX_DAYS = 3650
"""Nobody tries anything out for ten years, and a date has a year of four digits (RFC 5280, 4.1.2.5)."""


@pki.command
def init(
    directory: Path,
    /,
    *,
    host: tuple[str, ...] = (),
    client: tuple[str, ...] = (),
    psk: tuple[str, ...] = (),
    days: int = 365,
) -> int:
    """Make a small CA in a new directory, with a server's and a client's certificate.

    The files are those that this program, nbdkit, qemu and libnbd look for in a
    directory of certificates; one directory serves both sides. It is for trying
    things out: the CA's key lies beside the certificates.

    :param directory: The directory to make.
    :param host: A name or IP address of the server, beside localhost, 127.0.0.1 and ::1. May be repeated.
    :param client: A client's name. The first one's certificate is beside the others, further ones have a
        directory each, DIRECTORY/NAME. Default: client.
    :param psk: Also write keys.psk, with a key for this user. May be repeated.
    :param days: How long the certificates are valid. Default: 365.
    """
    from gateway.tls.errors import CredentialsError
    from gateway.tls.pki import make_pki, write_pki

    def make(now: datetime) -> dict[str, bytes]:
        try:
            return make_pki(host, client, psk, days=days, now=now)
        except CredentialsError as error:
            raise UsageError(str(error)) from None

    _check_days(days)
    if status := _done(directory, make, write_pki):
        return status
    where = directory.absolute()
    in_shell, in_uri = _in_shell(where), percent_encoded(bytes(where), safe="/")
    print(
        "\nThis is for trying things out: whoever reads ca-key.pem can be anybody."
        "\n\nA gateway before your server, and what a client is told:\n"
        "\n  nbd-gateway serve nbd://127.0.0.1:10808 --listen nbds://0.0.0.0:10809"
        f" --tls-certificates {in_shell}"
        f"\n  nbdinfo 'nbds://localhost?tls-certificates={in_uri}'"
    )
    if psk:
        print(
            "\n  nbd-gateway serve nbd://127.0.0.1:10808 --listen nbds://0.0.0.0:10809"
            f" --tls-psk {in_shell}/keys.psk"
            f"\n  nbdinfo 'nbds://{percent_encoded(psk[0], safe='')}@localhost?tls-psk-file={in_uri}/keys.psk'"
        )
    print(
        f"\nOne more client: nbd-gateway pki add {in_shell} NAME. One less: pki revoke. In time: pki renew."
    )
    return 0


@pki.command
def add(directory: Path, client: str, /, *, days: int = 365) -> int:
    """Add a client to what `pki init` has made: its files are in a directory of its name.

    :param directory: The directory.
    :param client: The client's name.
    :param days: How long its certificate is valid. Default: 365.
    """
    from gateway.tls.pki import add_client, write_client

    _check_days(days)
    status = _done(
        directory, lambda now: add_client(directory, client, days=days, now=now), write_client
    )
    if not status:
        print("\nIt is good at once: no gateway has to be told.")
    return status


@pki.command
def renew(directory: Path, /, *, days: int = 365) -> int:
    """Make all certificates in a directory anew: the same keys and names, and a new time.

    A gateway that uses the directory takes them up by itself, within 10 seconds, and at once on a
    reload. Clients that have a copy want the new one before the old has ended.

    :param directory: The directory.
    :param days: How long they are valid. Default: 365.
    """
    from gateway.tls.pki import renewed, replace_pki

    _check_days(days)
    status = _done(directory, lambda now: renewed(directory, days=days, now=now), replace_pki)
    if not status:
        _say_when("Gateways that use the directory take it up")
    return status


@pki.command
def revoke(directory: Path, client: str, /) -> int:
    """Revoke a client's certificate: it goes on the list in ca-crl.pem.

    A gateway that uses the directory takes that up by itself, for who connects from then on, within
    10 seconds, and at once on a reload.

    :param directory: The directory.
    :param client: The client's name.
    """
    from gateway.tls.pki import replace_pki, revoked

    status = _done(directory, lambda now: revoked(directory, client, now=now), replace_pki)
    if not status:
        _say_when(
            "Gateways that use the directory refuse it to who connects from then on (sessions go on)"
        )
    return status


def _say_when(what: str) -> None:
    """Say how long it takes: somebody who revokes a certificate and tries it sees it work for a while."""
    from gateway.tls.rotation import TAKEN_UP_SECONDS

    print(f"\n{what} within {TAKEN_UP_SECONDS} s; nbd-gateway reload, or SIGHUP, does it at once.")


def _in_shell(path: Path) -> str:
    """Give a path quoted for a shell, in printable characters."""
    text = str(path)
    if text.isprintable():
        return quote(text)
    safe = set(range(32, 127)) - {*b"'\\"}
    written = (chr(byte) if byte in safe else f"\\x{byte:02x}" for byte in bytes(path))
    return f"$'{''.join(written)}'"  # other quotes do not know \\x


def _check_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"--days: expected 1 to {MAX_DAYS}, got {days}")


def _done(
    directory: Path,
    make: Callable[[datetime], dict[str, bytes]],
    put: Callable[[Path, dict[str, bytes]], None],
) -> int:
    from datetime import UTC, datetime

    from gateway.tls.errors import CredentialsError

    try:
        files = make(datetime.now(UTC))
        put(directory, files)
    except CredentialsError as error:
        complain(str(error))
        return 1
    for name in files:
        print(directory / name)
    return 0
