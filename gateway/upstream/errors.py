"""Why there is no link, by what a client is told of it."""

from __future__ import annotations

from gateway.protocol.client_role import Refused
from gateway.protocol.errors import Refusal
from gateway.wire.constants import Rep


class Unreachable(Refusal):
    """The upstream cannot be reached, or says nothing that can be understood. Of all that a client may be told
    that keeps the export from seeming not to exist, qemu and libnbd make the best sentence of ERR_SHUTDOWN: of
    ERR_PLATFORM they say that the option is not supported (docs/troubleshooting.md).
    """

    def __init__(self, text: str) -> None:
        super().__init__(Rep.ERR_SHUTDOWN, text)


class Silent(Unreachable):
    """The upstream has a connection, and says nothing."""


class Full(Unreachable):
    """The upstream has as many connections of ours as the configuration lets it have."""


class NotSecured(Unreachable):
    """TLS with the upstream fails, or it has none. A person has to look at that."""


class NotSecuredYet(NotSecured):
    """The server's certificate is for clients alone. The next connection finds another check."""


class TlsRequired(Refusal):
    """The upstream says nothing before TLS. To a client that is a matter of policy: it may be over TLS itself,
    and cannot help it. Nor would `why`, which says how it is mended, be of use to it: the URI is ours.
    """

    def __init__(self, why: str) -> None:
        text = "the gateway's own server wants TLS, which the gateway does not use there"
        super().__init__(Rep.ERR_POLICY, text, why=why)


class Rejected(Refusal):
    """The server has said no to an option, in so many words."""


class LostTheWay(Exception):
    """The server closed, or broke the protocol, where an option was under way. `closed`: the former."""

    def __init__(self, text: str, *, closed: bool = False) -> None:
        super().__init__(text)
        self.closed = closed


class Died(Unreachable):
    """The connection has ended in the middle of the greeting, or after it, before anything depended on what is
    asked.
    """


_PASSED_ON = frozenset(
    {Rep.ERR_UNSUP, Rep.ERR_UNKNOWN, Rep.ERR_POLICY, Rep.ERR_SHUTDOWN, Rep.ERR_INVALID}
)


def refusal_at_home(refused: Refused) -> Refusal:
    """Give what a client is told when the home of its disk refused, which says it as we would."""
    return Rejected(refused.reply, refused.text or str(refused))


def refusal_for_client(refused: Refused) -> Refusal:
    """Give what a client is told when the upstream refused (nbd-reference, appendix C)."""
    text = f"upstream: {refused}"
    if refused.reply in _PASSED_ON:
        return Rejected(refused.reply, text)
    if refused.reply == Rep.ERR_TOO_BIG:
        return Refusal(Rep.ERR_INVALID, text)
    if refused.reply == Rep.ERR_TLS_REQD:
        return TlsRequired(f"{text}: use nbds: in the URI of this server")
    return Refusal(Rep.ERR_PLATFORM, text)
