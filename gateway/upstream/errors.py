"""Why there is no link, by what a client is told of it."""

from __future__ import annotations

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


class TlsRequired(Refusal):
    """The upstream says nothing before TLS. To a client that is a matter of policy: it may be over TLS itself,
    and cannot help it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(Rep.ERR_POLICY, text)
