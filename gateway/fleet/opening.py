"""The etcd of a configuration, opened with what it wants of us: certificates, a user, a password."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from gateway.config import Fleet
from gateway.fleet.etcd import Etcd
from gateway.tls.certificates import load_certificates
from gateway.tls.errors import CredentialsError

STEP_PART = 0.2
"""How long one step of an answer of etcd's may take, as a part of the lease: another member can still be asked
before the lease has run out."""


class Password:
    """What is in a file with a password, now: whoever gives the user another one in etcd writes it there, and
    no gateway has to be started anew. If it cannot be read any more (the gateway is another user by now), it is
    what it was. Raises `OSError`, `UnicodeError`.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last = self._read()

    def _read(self) -> str:
        return "" if self._path is None else self._path.read_text().rstrip("\n")

    def __call__(self) -> str:
        """Give it."""
        with suppress(OSError, UnicodeError):
            self._last = self._read()
        return self._last


class EtcdNotOpened(Exception):
    """What etcd wants of us is not there; the text says what."""


def opened_etcd(settings: Fleet) -> Etcd:
    """Give the etcd. Nothing is connected to. Raises `EtcdNotOpened`."""
    context, password = None, Password(None)
    try:
        if settings.etcd_certificates is not None:
            at = settings.etcd_certificates
            # It says which file is no good; `ssl` says only that one is.
            load_certificates(at, "client", need_ca=True)
            context = ssl.create_default_context(cafile=str(at / "ca-cert.pem"))
            if (at / "client-cert.pem").exists():
                context.load_cert_chain(at / "client-cert.pem", at / "client-key.pem")
        if settings.etcd_password_file is not None:
            password = Password(settings.etcd_password_file)
    except CredentialsError as error:
        raise EtcdNotOpened(f"for etcd: {error}") from None
    except (OSError, UnicodeError) as error:  # among them those of `ssl`
        raise EtcdNotOpened(f"what etcd wants of us cannot be read: {error}") from None
    return Etcd(
        settings.etcd,
        context=context,
        user=settings.etcd_user,
        password=password,
        seconds=STEP_PART * settings.lease_seconds,
    )
