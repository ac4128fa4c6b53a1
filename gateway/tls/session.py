"""One TLS session: how it begins, and who its peer turns out to be."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.tls.errors import NotAdmitted
from gateway.tls.psk import ClaimedUser
from gateway.tls.purpose import is_of_purpose
from gateway.tls.revoked import RevokedList, check_not_revoked, utc_now, verified_chain
from gateway.wire.handshake import shown


@dataclass(frozen=True, slots=True)
class Admitted:
    """By what a peer has proved who it is: its certificate (DER) or, for a client, the user of a key. Both are
    None for a client that needs neither, and for a server that knows our key.
    """

    certificate: bytes | None
    psk_user: str | None


class TlsSession:
    """One TLS session: how to begin it, and the check after its handshake. `context` is for this session alone.
    If `certificates` is given, certificates and CAs come from that context.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        certificates: ssl.SSLContext | None = None,
        hostname: str | None = None,
        certificate_needed: bool = False,
        claim: ClaimedUser | None = None,
        lists: Sequence[RevokedList] = (),
        chain_of: Callable[[ssl.SSLObject], Sequence[bytes]] | None = None,
        forgive_purpose: Callable[[], object] | None = None,
    ) -> None:
        """`lists`: the lists of revoked certificates in which we look up the peer's. `chain_of` checks a chain
        that OpenSSL has not, and gives it, or raises `NotAdmitted`; without it, OpenSSL does. `forgive_purpose`
        is told that the next session may do without what OpenSSL has refused the peer for
        (`gateway.tls.purpose`); without it, none may.
        """
        self.context = context
        self._lists = lists
        self._chain_of = chain_of
        self._forgive_purpose = forgive_purpose
        self._server_side = server_side
        self._certificates = certificates
        self._hostname = hostname
        self._certificate_needed = certificate_needed
        self._claim = claim

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Begin the session, once, over two buffers. A server's caller puts what it has received so far into
        `incoming`.
        """
        tls = self.context.wrap_bio(
            incoming, outgoing, server_side=self._server_side, server_hostname=self._hostname
        )
        if self._certificates is not None:
            tls.context = self._certificates
        return tls

    def admitted(self, tls: ssl.SSLObject) -> Admitted:
        """Say who the peer is. This has to be called after the handshake, before we read anything else that the
        peer says. Raises `NotAdmitted`.
        """
        if self._claim is not None:
            if self._claim.user is None or not used_key(tls):
                raise NotAdmitted("no pre-shared key was used")
            return Admitted(None, self._claim.user if self._server_side else None)
        if tls.session_reused:
            raise NotAdmitted("a session was resumed")
        certificate = tls.getpeercert(binary_form=True)
        if certificate is None and self._certificate_needed:
            raise NotAdmitted("no certificate was shown")
        chain = None if self._chain_of is None else self._chain_of(tls)
        if certificate is not None and self._lists:
            check_not_revoked(chain or verified_chain(tls), self._lists, utc_now())
        return Admitted(certificate, None)

    def forgive(self, error: ssl.SSLError) -> bool:
        """Leave to another check, in the next session, what OpenSSL has refused the peer for, if that is its
        certificate's purpose alone. Say whether it is.
        """
        if self._forgive_purpose is None or not is_of_purpose(error):
            return False
        self._forgive_purpose()
        return True

    def failure(self, reason: str, *, openssl: str = "") -> str:
        """Say why the handshake has failed, with the user that the client claimed to be; `openssl` is OpenSSL's
        name for the reason. This is for the log alone: a client must not learn whether its user is unknown or
        its key wrong.
        """
        user = None if self._claim is None else self._claim.user
        if user is None:
            return reason
        if not self._server_side:
            perhaps = "perhaps the server does not know this user, or another key"
            return f"as user {shown(user)}: {reason}; {perhaps}"
        if openssl in WRONG_KEY:
            return f"user {shown(user)}: unknown user or wrong key ({reason})"
        return f"user {shown(user)}: {reason}"


WRONG_KEY = frozenset(
    {
        "BINDER_DOES_NOT_VERIFY",
        "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
        "RECORD_LAYER_FAILURE",
    }
)
"""How OpenSSL tells a server that the client has another key: over TLS 1.3, and over TLS 1.2 before OpenSSL
3.2, and from then on. (Tried with OpenSSL 3.0 and 3.5, and GnuTLS 3.7.)"""


def used_key(tls: ssl.SSLObject) -> bool:
    """Say whether a completed handshake used a pre-shared key, which proves that both sides know it. TLS 1.3
    makes no difference between a key and a resumed session (RFC 8446, 2.2), nor does OpenSSL. TLS 1.2 has
    cipher suites for keys.
    """
    if tls.version() == "TLSv1.3":
        return bool(tls.session_reused)
    cipher = tls.cipher()
    return cipher is not None and "PSK" in cipher[0]
