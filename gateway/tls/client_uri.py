"""The URI by which a client on this machine reaches a listener of ours over TLS, with the client's credentials.

Certificates come first: a directory with a server's may have a client's as well, as `nbd-gateway pki init`
makes it. Else there may be a key. The server's certificate has to be for the host that the URI names, because
libnbd before 1.22 cannot compare it with another (`tls-hostname`). So if the certificate is not for the address
that we listen on, but for `localhost`, and that leads to us, the URI says `localhost`.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from gateway.there import seems_there
from gateway.tls.certificates import CA_CERT, names_of
from gateway.tls.errors import CredentialsError
from gateway.tls.pki import CLIENT_CERT
from gateway.tls.psk import load_keys
from gateway.uri import NbdUri, Transport

LOCALHOST = "localhost"


def client_uri(
    uri: NbdUri, certificates: Path | None, psk: Path | None, *, verify_client: bool
) -> NbdUri:
    """Give the URI for clients of a listener at `uri` that demands TLS. It leaves out files that can no longer
    be read.
    """
    secure = replace(uri, tls=True)
    if certificates is not None and (psk is None or _suffice(certificates, verify_client)):
        known = {"tls-certificates": str(certificates.absolute())}
        parameters = known if seems_there(certificates / CA_CERT) else {}
        return _found_valid(replace(secure, parameters=parameters), certificates)
    assert psk is not None  # a listener over TLS has one or the other
    try:
        user = load_keys(psk).users[0]
    except CredentialsError:
        return secure
    return replace(secure, username=user, parameters={"tls-psk-file": str(psk.absolute())})


def _suffice(certificates: Path, verify_client: bool) -> bool:
    """Say whether a directory has what a client needs."""
    return not verify_client or seems_there(certificates / CLIENT_CERT)


def _found_valid(uri: NbdUri, certificates: Path) -> NbdUri:
    """Have the URI name a host that the server's certificate is for, as its host or as `tls-hostname`."""
    try:
        names = names_of(certificates)
    except CredentialsError:
        return uri
    if not names or uri.host in names:
        return uri
    if LOCALHOST in names and uri.transport is Transport.TCP and _local(uri.host):
        return replace(uri, host=LOCALHOST)
    name = LOCALHOST if LOCALHOST in names else names[0]
    return replace(uri, parameters={**uri.parameters, "tls-hostname": name})


def _local(host: str | None) -> bool:
    """Say whether `localhost` leads to a listener at this host."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
