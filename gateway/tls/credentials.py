"""Credentials -> SSL contexts for both sides, and who is admitted by them.

TLS 1.2 and 1.3 (proto.md, "TLS versions"), with forward secrecy and AEAD only. No compression, no
renegotiation.

No session is ever resumed. A resumed session would bypass the look-up of its key, the list of revoked
certificates, and an exchange of the CA. Tickets are off. But OpenSSL also keeps TLS 1.2's sessions by their
ids, in a cache of each context, and CPython has no switch for that. So each session of a server begins in a
new, empty context of its own, and is then moved to the context that has the certificates (`SSLObject.context`).
OpenSSL takes certificates and CAs from there; everything else, the cache included, stays that of the context in
which the session began.

A server with certificates and keys keeps the two in separate contexts. A client that offers a key in its first
message (`gateway.tls.hello`) gets the context of keys: GnuTLS and OpenSSL offer one only if the client has it,
and means to use it. Any other client gets the context of certificates. So:

- The context of certificates has no keys. With `verify_client` it is CERT_REQUIRED: without a certificate of
  our CA, no client completes the handshake. (One context for both would have to be CERT_OPTIONAL. Then, over
  TLS 1.3, OpenSSL 3 would let in a client that only names a user and knows no key. `gateway.tls.psk` says why.)
- The context of keys has no certificate: without a key, no client completes the handshake.

Every session passes `TlsSession.admitted`, which checks all this once more.
"""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path

from gateway.tls.certificates import (
    Certificates,
    Term,
    apply,
    first_to_end,
    load_certificates,
    paths_of,
    warnings,
)
from gateway.tls.errors import CredentialsError, NotAdmitted, all_told
from gateway.tls.hello import offers_key
from gateway.tls.psk import ClaimedUser, Keys, check_supported, claim_of, load_keys, offer_key
from gateway.tls.purpose import chain_of_a_client, shown_chain
from gateway.tls.revoked import utc_now
from gateway.tls.session import TlsSession

# In OpenSSL's names (openssl-ciphers(1)). Those of TLS 1.3 are all good, and CPython before 3.15 cannot choose.
CERTIFICATE_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20:!PSK"
KEY_SUITES = "ECDHE-PSK-CHACHA20-POLY1305"
"""The only suite with ECDHE and AEAD that OpenSSL 3 has: it lacks RFC 8442's suites with AES-GCM. Plain PSK
would have AES-GCM, but whoever learns the key some day could read all that was recorded before. Every GnuTLS
since 3.4 (2015) offers this suite (libnbd and qemu over TLS 1.2: tried). Since 3.6.3 (2018) it prefers TLS
1.3."""

KEY_SUITES_13 = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
"""OpenSSL binds keys to SHA-256 (RFC 8446, 4.2.11), which leaves these two. AES-GCM is faster on most
processors, but OpenSSL's own order has ChaCha20 first, and CPython can change it from 3.15 on."""


# ---- servers ----


def server_paths(certificates: Path | None, psk: Path | None) -> tuple[Path, ...]:
    """Give the files that a server's credentials depend on, whether they are there or not."""
    files = () if certificates is None else paths_of(certificates, "server")
    return files if psk is None else (*files, psk)


def server_credentials(
    certificates: Path | None, psk: Path | None = None, *, verify_client: bool = True
) -> ServerCredentials:
    """Load what a server needs: a directory of certificates, a PSK file, or both (then either admits a client).

    With `verify_client`, a client without a key must show a certificate of one of the CAs in ca-cert.pem that
    ca-crl.pem does not revoke. Raises `CredentialsError`.
    """
    if certificates is None and psk is None:
        raise CredentialsError(None, "TLS needs a directory of certificates, a PSK file, or both")
    loaded = None
    keys = None
    with all_told() as part:
        if certificates is not None:
            with part():
                loaded = load_certificates(certificates, "server", need_ca=verify_client)
        if psk is not None:
            with part():
                check_supported(psk)
                keys = load_keys(psk)
    return ServerCredentials(loaded, keys, verify_client=verify_client)


class ServerCredentials:
    """A server's certificates and keys, as they were when they were loaded."""

    def __init__(
        self, certificates: Certificates | None, keys: Keys | None, *, verify_client: bool
    ) -> None:
        self.terms: tuple[Term, ...] = () if certificates is None else certificates.terms
        self.exposed = None if certificates is None else certificates.exposed
        """A warning if others can read our certificate's key. (A PSK file that others can read is refused.)"""
        self._unsuited = None if certificates is None else certificates.unsuited
        self._lists = certificates.lists if certificates is not None and verify_client else ()
        self._verify_client = verify_client
        self._context = (
            None
            if certificates is None
            else server_context(certificates, verify_client=verify_client)
        )
        self._keys = keys
        self._suites = frozenset[int]()
        if keys is not None:
            ciphers = _key_context(ssl.PROTOCOL_TLS_SERVER).get_ciphers()
            # The lower half of OpenSSL's number is the protocol's number.
            self._suites = frozenset(
                cipher["id"] & 0xFFFF for cipher in ciphers if cipher["auth"] == "auth-psk"
            )

    def session(self, received: bytes | bytearray) -> TlsSession | None:
        """Give a client's session, by what the client has sent so far; None if that is too little to choose a
        context. The session then has to read all of `received`. At most 128 KiB are needed to choose.
        """
        if self._keys is None:
            by_key: bool | None = False
        elif self._context is None:
            by_key = True
        else:
            by_key = offers_key(received, self._suites)
        if by_key is None:
            return None
        if by_key:
            assert self._keys is not None
            context = _key_context(ssl.PROTOCOL_TLS_SERVER)
            return TlsSession(context, server_side=True, claim=claim_of(context, self._keys))
        assert self._context is not None
        empty = _context(ssl.PROTOCOL_TLS_SERVER, CERTIFICATE_SUITES)
        empty.verify_mode = self._context.verify_mode
        empty.verify_flags = self._context.verify_flags
        return TlsSession(
            empty,
            server_side=True,
            certificates=self._context,
            certificate_needed=self._verify_client,
            lists=self._lists,
        )

    def warnings(self, now: datetime) -> list[str]:
        """Say which of our certificates and lists are not valid at `now`, or end within 30 days, and whether
        our certificate is for something else.
        """
        return warnings(self.terms, now) + ([self._unsuited] if self._unsuited else [])

    @property
    def first_to_end(self) -> Term | None:
        """Whatever of ours ends first."""
        return first_to_end(self.terms)


def server_context(certificates: Certificates, *, verify_client: bool) -> ssl.SSLContext:
    """Make the context of a server that has certificates. Raises `CredentialsError`."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, CERTIFICATE_SUITES)
    if verify_client:
        context.verify_mode = ssl.CERT_REQUIRED
    apply(certificates, context)
    return context


# ---- clients ----


def client_paths(certificates: Path | None, psk: Path | None) -> tuple[Path, ...]:
    """Give the files that a client's credentials depend on, whether they are there or not."""
    files = () if certificates is None else paths_of(certificates, "client")
    return files if psk is None else (*files, psk)


def client_credentials(
    certificates: Path | None = None,
    psk: Path | None = None,
    *,
    hostname: str | None = None,
    verify_peer: bool = True,
    psk_user: str | None = None,
    any_purpose: bool = False,
) -> ClientCredentials:
    """Load what a client needs: a directory of certificates, or a PSK file with the user to be; with neither,
    we trust the system's CAs (as libnbd does).

    The server's certificate has to be valid for `hostname`, a name or an IP address, which is the URI's host or
    its `tls-hostname` (uri.md). If `verify_peer` is false (`tls-verify-peer`), any server is taken, and so is
    any man in the middle. With a key, the server has to prove that it knows the key, whatever `hostname` and
    `verify_peer` are; a server that shows a certificate instead is refused. `psk_user` may be left out if the
    file has one user. `any_purpose`: the server's certificate may be for clients alone (`gateway.tls.purpose`).

    Raises `CredentialsError`.
    """
    if psk is not None:
        if certificates is not None:
            raise CredentialsError(
                None, "a server is reached with certificates or with a key, not both"
            )
        check_supported(psk)
        keys = load_keys(psk)
        user = keys.only_user() if psk_user is None else psk_user
        if user is None:
            raise CredentialsError(
                psk,
                "has several users; expected psk-user, or USER@ in the URI, to say which one to be",
            )
        if not keys.knows(user):
            raise CredentialsError(psk, f'has no user "{user}", which psk-user or the URI names')
        context = _key_context(ssl.PROTOCOL_TLS_CLIENT)
        # No name: it would be sent in the clear (SNI), and nothing would be compared with it.
        claim = offer_key(context, user, keys.key_of(user))
        return ClientCredentials(context, None, None, claim=claim)
    if verify_peer and not hostname:
        raise CredentialsError(
            None, "expected tls-hostname to say which name the server's certificate has"
        )
    loaded = None
    if certificates is not None:
        loaded = load_certificates(certificates, "client", need_ca=verify_peer)
    context = client_context(loaded, verify_peer=verify_peer)
    # Made now, for by the time it is needed the files may be gone, or others.
    unchecked = client_context(loaded, verify_peer=False) if any_purpose and verify_peer else None
    return ClientCredentials(
        context, hostname or None, loaded, verify_peer=verify_peer, unchecked=unchecked
    )


class ClientCredentials:
    """What we show to one server, and what it has to show, as they were when they were loaded."""

    def __init__(
        self,
        context: ssl.SSLContext,
        hostname: str | None,
        certificates: Certificates | None,
        *,
        verify_peer: bool = False,
        unchecked: ssl.SSLContext | None = None,
        claim: ClaimedUser | None = None,
    ) -> None:
        """`unchecked`: a context for a server that was refused for its certificate's purpose alone; OpenSSL
        does not check it there. Without one, such a server stays refused.
        """
        self.terms: tuple[Term, ...] = () if certificates is None else certificates.terms
        self.exposed = None if certificates is None else certificates.exposed
        """As for a server."""
        self._unsuited = None if certificates is None else certificates.unsuited
        self._lists = certificates.lists if certificates is not None and verify_peer else ()
        self._claim = claim
        self._context = context
        self._hostname = hostname
        self._verify_peer = verify_peer
        self._unchecked = unchecked
        self._leaves_purpose_out = False

    def session(self) -> TlsSession:
        """Give a new session with the server."""
        if self._unchecked is not None and self._leaves_purpose_out:
            return TlsSession(
                self._unchecked,
                server_side=False,
                hostname=self._hostname,
                certificate_needed=True,
                lists=self._lists,
                chain_of=self._chain_of_any_purpose,
            )
        return TlsSession(
            self._context,
            server_side=False,
            hostname=self._hostname,
            certificate_needed=self._verify_peer,
            claim=self._claim,
            lists=self._lists,
            forgive_purpose=None if self._unchecked is None else self._leave_purpose_out,
        )

    def _leave_purpose_out(self) -> None:
        self._leaves_purpose_out = True

    def _chain_of_any_purpose(self, tls: ssl.SSLObject) -> list[bytes]:
        assert self._hostname is not None  # a server that is verified has one
        trusted = self._context.get_ca_certs(binary_form=True)
        try:
            return chain_of_a_client(shown_chain(tls), trusted, self._hostname, utc_now())
        except NotAdmitted:
            self._leaves_purpose_out = False  # it may have another certificate by the next time
            raise

    def warnings(self, now: datetime) -> list[str]:
        """Say which of our certificates and lists are not valid at `now`, or end within 30 days, and whether
        our certificate is for something else.
        """
        return warnings(self.terms, now) + ([self._unsuited] if self._unsuited else [])

    @property
    def first_to_end(self) -> Term | None:
        """Whatever of ours ends first."""
        return first_to_end(self.terms)


def client_context(certificates: Certificates | None, *, verify_peer: bool) -> ssl.SSLContext:
    """Make the context of a client without a key. Raises `CredentialsError`."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, CERTIFICATE_SUITES)
    # If a certificate has no SANs, its CN is compared (CPython's default, hostname_checks_common_name): such
    # ones are what nbdkit-tls(1) and qemu's manual tell people to make.
    if not verify_peer:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificates is not None:
        apply(certificates, context)
    elif verify_peer:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


# ---- both ----


def _key_context(protocol: int) -> ssl.SSLContext:
    context = _context(protocol, KEY_SUITES)
    if protocol == ssl.PROTOCOL_TLS_CLIENT:
        # CERT_REQUIRED stays, and no CA is trusted: so over TLS 1.3 a server without the key cannot show a
        # certificate instead. Without a certificate there is no name to compare.
        context.check_hostname = False
    if hasattr(context, "set_ciphersuites"):  # CPython 3.15
        context.set_ciphersuites(KEY_SUITES_13)
    return context


def _context(protocol: int, suites: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suites)
    context.options |= (
        ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_NO_TICKET
        | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # OP_NO_TICKET alone would not turn off TLS 1.3's tickets, but make them stateful, kept in a cache.
        context.num_tickets = 0
    return context
