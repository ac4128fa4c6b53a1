"""Which certificates of a fleet have ended, or soon will: without them no gateway reaches another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from gateway.tls.certificates import Term, load_certificates, warnings
from gateway.tls.credentials import client_credentials, server_credentials

if TYPE_CHECKING:
    from gateway.config import Fleet

Terms = Mapping[str, tuple[Term, ...]]
"""From when to when each is valid, by the key of `[fleet]` that leads to it."""


def terms_of(settings: Fleet) -> Terms:
    """Read the terms of all that there are. Raises `CredentialsError`."""
    at = settings.certificates
    server, client = server_credentials(at), client_credentials(at, hostname=settings.address.host)
    found = {"certificates": (*server.terms, *client.terms)}
    if settings.etcd_certificates is not None:
        theirs = load_certificates(settings.etcd_certificates, "client", need_ca=True)
        found["etcd-certificates"] = theirs.terms
    return found


def ending(terms: Terms, now: datetime) -> Iterator[tuple[str, str]]:
    """Say whose certificates are not valid at `now`, or end soon: the key, and what of them."""
    for key, each in terms.items():
        for text in dict.fromkeys(warnings(each, now)):  # the CA is for both sides
            yield f"fleet.{key}", text
