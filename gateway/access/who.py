"""Does `who` of a rule mean this client?

Patterns are compared with parsed names, and networks with parsed addresses, never with formatted ones. A CN of
"x,CN=admin" is one CN with a comma in it, and 10.0.0.10 is not in the network 10.0.0.1 although its text begins
so. A subject with two CNs says two things of who it is, and matches no pattern of CNs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from gateway.config import Certificate, Network, Who
from gateway.identity import MAX_DESCRIBED_NAMES, Identity
from gateway.wire.handshake import shown


def why_not(who: Who, identity: Identity) -> str | None:
    """Say why a client is not meant. None: it is, because all keys hold."""
    for key, check in _CHECKS.items():
        wanted = getattr(who, key)
        if wanted is not None and (why := check(wanted, identity)) is not None:
            return why
    return None


def _certificate(wanted: Certificate, identity: Identity) -> str | None:
    if identity.fingerprint is None:
        return "it has shown no certificate"
    single = {"cn": identity.common_names, "issuer-cn": identity.issuer_common_names}
    for key, patterns in (("cn", wanted.cn), ("issuer-cn", wanted.issuer_cn)):
        names = single[key]
        if patterns is not None and len(names) != 1:
            return f"its certificate has {len(names)} names for {key}, and one is compared"
        if patterns is not None and not _any_matches(patterns, names):
            return f"{key} is {shown(names[0])}"
    dns_names = tuple(name.lower() for name in identity.dns_names)
    if wanted.san_dns is not None and not _any_matches(wanted.san_dns, dns_names):
        return _none_of("san-dns", identity.dns_names)
    if wanted.san_uri is not None and not _any_matches(wanted.san_uri, identity.uris):
        return _none_of("san-uri", identity.uris)
    if wanted.fingerprint is not None and identity.fingerprint not in wanted.fingerprint:
        return f"fingerprint is {identity.fingerprint}"
    return None


def _network(wanted: Sequence[Network], identity: Identity) -> str | None:
    address = identity.address
    if address is None:
        return "it has no address"
    if not any(address in network for network in wanted):
        return f"it comes from {address}"
    return None


def _psk_user(wanted: tuple[str, ...], identity: Identity) -> str | None:
    if identity.psk_user is None:
        return "it has shown no pre-shared key"
    if not _any_matches(wanted, (identity.psk_user,)):
        return f"its key is that of {shown(identity.psk_user)}"
    return None


def _unix_user(wanted: tuple[int, ...], identity: Identity) -> str | None:
    if identity.unix is None:
        return "it does not come over a Unix socket"
    if identity.unix.uid not in wanted:
        return f"its Unix user is {identity.unix.uid}"
    return None


def _tls(wanted: bool, identity: Identity) -> str | None:
    if identity.tls is wanted:
        return None
    return "it comes over TLS" if identity.tls else "it comes without TLS"


_CHECKS: dict[str, Callable[..., str | None]] = {
    "certificate": _certificate,
    "network": _network,
    "psk_user": _psk_user,
    "unix_user": _unix_user,
    "tls": _tls,
}


def _any_matches(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _none_of(key: str, names: tuple[str, ...]) -> str:
    if not names:
        return f"it has no {key}"
    said = [shown(name) for name in names[:MAX_DESCRIBED_NAMES]]
    if len(names) > MAX_DESCRIBED_NAMES:
        said.append(f"and {len(names) - MAX_DESCRIBED_NAMES} more")
    return f"{key} is {', '.join(said)}"
