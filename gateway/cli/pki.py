"""nbd-gateway pki: certificates for trying TLS out."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from urllib.parse import quote as percent_encoded

from cyclopts import App

from gateway.cli import UsageError, complain

pki = App(name="pki", help="Make certificates and keys for trying TLS out.")

MAX_DAYS = 3650
"""Nobody tries anything out for ten years; and a date has four digits of the year (RFC 5280, 4.1.2.5)."""


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
    from datetime import UTC, datetime

    from gateway.tls.errors import CredentialsError
    from gateway.tls.pki import make_pki, write_pki

    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"--days: expected 1 to {MAX_DAYS}, got {days}")
    try:
        files = make_pki(host, client, psk, days=days, now=datetime.now(UTC))
    except CredentialsError as error:
        raise UsageError(str(error)) from None
    try:
        write_pki(directory, files)
    except CredentialsError as error:
        complain(str(error))
        return 1
    for name in files:
        print(directory / name)
    where = directory.absolute()
    in_shell, in_uri = quote(str(where)), percent_encoded(bytes(where), safe="/")
    print(
        "\nThis is for trying things out: whoever reads ca-key.pem can be anybody."
        "\n\nA server, and what a client is told:\n"
        f"\n  nbdkit --tls=require --tls-certificates={in_shell} --tls-verify-peer memory 1G"
        f"\n  nbdinfo 'nbds://localhost?tls-certificates={in_uri}'"
    )
    if psk:
        print(
            f"\n  nbdkit --tls=require --tls-psk={in_shell}/keys.psk memory 1G"
            f"\n  nbdinfo 'nbds://{percent_encoded(psk[0], safe='')}@localhost?tls-psk-file={in_uri}/keys.psk'"
        )
    return 0
