"""What an nbds: URI and the settings beside it say of how we reach a server over TLS. The parameters are
uri.md's ("TLS query parameters") and libnbd's own (nbd_connect_uri(3)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.tls.credentials import ClientCredentials, client_credentials, client_paths
from gateway.tls.errors import CredentialsError
from gateway.uri import NbdUri

TYPES = ("x509", "psk")
"""What `tls-type` may be. We do not take the third type, `anon`: it encrypts, but also to a man in the
middle."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to be a client of one server over TLS."""

    load: Callable[[], ClientCredentials]
    """Raises `CredentialsError`."""
    paths: tuple[Path, ...]
    """The files that the credentials depend on."""


def wanted_of(
    uri: NbdUri,
    *,
    certificates: Path | None = None,
    psk: Path | None = None,
    psk_user: str | None = None,
) -> Wanted:
    """Put together what the URI says and, where it is silent, what the settings beside it say. Raises
    `CredentialsError` for what makes no sense.
    """
    said = uri.parameters
    certificates = certificates or _path(said.get("tls-certificates"))
    psk = psk or _path(said.get("tls-psk-file"))
    user = psk_user or said.get("tls-username") or uri.username
    verify = _verify(said.get("tls-verify-peer", "true"))
    kind = said.get("tls-type")
    if kind is not None and kind not in TYPES:
        raise CredentialsError(None, f'tls-type is {" or ".join(TYPES)}, not "{kind}"')
    if kind == "psk" and psk is None:
        raise CredentialsError(None, "tls-type=psk needs a file of keys: tls-psk-file")
    if kind == "x509" and psk is not None:
        raise CredentialsError(None, "tls-type=x509 goes without a file of keys")
    hostname = said.get("tls-hostname") or uri.host
    if verify and psk is None and not hostname:
        text = f"{uri} has no host; tls-hostname says which name the server's certificate is for"
        raise CredentialsError(None, text)

    def load() -> ClientCredentials:
        return client_credentials(
            certificates,
            psk,
            hostname=hostname,
            verify_peer=verify,
            psk_user=user,
            any_purpose=True,
        )

    return Wanted(load, client_paths(certificates, psk))


def _path(said: str | None) -> Path | None:
    return Path(said) if said else None


def _verify(said: str) -> bool:
    # As libnbd reads it.
    if said.lower() in ("true", "t", "yes", "y", "on", "1"):
        return True
    if said.lower() in ("false", "f", "no", "n", "off", "0"):
        return False
    raise CredentialsError(None, f'tls-verify-peer is true or false, not "{said}"')
