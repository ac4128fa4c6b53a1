"""`[upstream.NAME]`: the keys of a server that we connect to.

They come in four groups: where it is, how it is spoken to, over how many connections (`connections`,
docs/connections.md), and what becomes of its clients when it dies.
"""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from gateway.config.base import Section, shown, text, written_as
from gateway.config.connections import MAX_CONNECTIONS, PER_CLIENT, Connections, parse_connections
from gateway.config.values import (
    File,
    KeepaliveSeconds,
    Seconds,
    Size,
    UserTimeoutSeconds,
    WaitSeconds,
    without_user,
)
from gateway.uri import NbdUri, Target, UriError, format_size, parse_upstream

# ---- values ----


def _upstream_uri(value: object) -> Target:
    target = parse_upstream(text(value))
    if isinstance(target, NbdUri):
        if not target.tls:
            without_user(target, "a user name is for nbds: with a pre-shared key")
        if target.port == 0:
            raise UriError(str(target), "port 0 cannot be connected to")
    return target


def _upstream_uris(value: object) -> tuple[NbdUri, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'expected a list, as in ["nbd://host-a", "nbd://host-b"], got {shown(value)}'
        )
    uris: list[NbdUri] = []
    for each in value:
        target = _upstream_uri(each)
        if not isinstance(target, NbdUri):
            raise UriError(text(each), "an embedded server has no place among others")
        if target in uris:
            raise UriError(str(target), "it is there already")
        if uris and target.tls != uris[0].tls:
            raise UriError(str(target), "all of them have to be nbds:, or none")
        if uris and (target.export_named, target.export) != (uris[0].export_named, uris[0].export):
            raise UriError(str(target), "all of them have to name the same export, or none any")
        uris.append(target)
    return tuple(uris)


def _command(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'expected a list, as in ["qemu-nbd", "-t", "disk.qcow2"], got {shown(value)}'
        )
    words = tuple(text(word) for word in value)
    if not words[0] or any("\0" in word for word in words):
        raise ValueError("a command begins with a program's name, and no word of it has a NUL")
    return words


def _quirks(value: object) -> Literal["auto"] | tuple[str, ...]:
    if value == "auto":
        return "auto"
    if not isinstance(value, list):
        raise ValueError(f'expected "auto" or a list of names, got {shown(value)}')
    return tuple(text(name) for name in value)


LEAST_STRIPE_BYTES = 1 << 20
"""Clients' requests are shorter, most of them much: hardly any has to be cut in two."""


def _stripe(size_bytes: int) -> int:
    if size_bytes < LEAST_STRIPE_BYTES or size_bytes & (size_bytes - 1):
        raise ValueError(
            f'expected a power of two of 1M or more, such as "1M" or "4M", got {format_size(size_bytes)}'
        )
    return size_bytes


LEAST_REPLAY_BYTES = 1 << 20
"""Less would be a FLUSH for every few writes. One that is longer is let through alone."""


def _replay_bytes(size_bytes: int) -> int:
    if size_bytes < LEAST_REPLAY_BYTES:
        raise ValueError(
            f"expected {format_size(LEAST_REPLAY_BYTES)} or more, for all wait when it is full, got"
            f" {format_size(size_bytes)}"
        )
    return size_bytes


UpstreamUri = Annotated[Target, *written_as(_upstream_uri)]
UpstreamUris = Annotated[tuple[NbdUri, ...], *written_as(_upstream_uris, array=True)]
Command = Annotated[tuple[str, ...], *written_as(_command, array=True)]
Quirks = Annotated[
    Literal["auto"] | tuple[str, ...],
    PlainValidator(_quirks),
    WithJsonSchema({"oneOf": [{"const": "auto"}, {"type": "array", "items": {"type": "string"}}]}),
]

ConnectionsWritten = Annotated[
    Connections,
    PlainValidator(parse_connections),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_CONNECTIONS},
                {"type": "string", "pattern": "^(per-client|shared|shared:[0-9]+)$"},
            ]
        }
    ),
]
Stripe = Annotated[Size, AfterValidator(_stripe)]
ReplayBytes = Annotated[Size, AfterValidator(_replay_bytes)]


# ---- the table ----


class Upstream(Section):
    """`[upstream.NAME]`: a server that we connect to. One of `uri`, `uris` and `command`."""

    uri: UpstreamUri | None = Field(
        default=None,
        description="An NBD URI, or an embedded server: memory:1G, file:disk.img, legacy:qemu-3.0. "
        "If it names an export, only that one is offered.",
    )
    uris: UpstreamUris = Field(
        default=(),
        description="Several servers of the same exports, in place of uri: if one is down, the next is taken."
        " For read-only exports; for others only with same-storage.",
    )
    command: Command | None = Field(
        default=None,
        description="Program and arguments of an NBD server that is started by systemd socket activation.",
    )
    # Two SYN retransmissions (1 s, 3 s, 7 s) fit; whoever has not answered then seldom will.
    connect_seconds: Seconds = Field(
        default=10,
        description="How long a connection to the server may take to come about; while it is being restarted,"
        " it is tried again for so long.",
    )
    # None, because most servers have no limit, or one that they tell themselves.
    max_connections: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="How many connections to the server there may be at a time; other clients wait"
        " connect-seconds for one to end. Default: any number.",
    )
    # A silent server would hang its client for ever. Longer than a client's own 10 s, since a server
    # may open its image over a network before it answers.
    negotiate_seconds: Seconds = Field(
        default=30,
        description="How long the server may take until an export is open, all its answers together.",
    )
    keepalive_seconds: KeepaliveSeconds = Field(
        default=60,
        description="Idle time after which TCP asks whether the server is still there; 0 never asks.",
    )
    user_timeout_seconds: UserTimeoutSeconds = Field(
        default=60,
        description="How long sent data may stay unacknowledged before TCP gives the server up; "
        "0 leaves it to the kernel.",
    )
    # Nobody should have to choose: what a server gets wrong is recognised by how it answers.
    quirks: Quirks = Field(
        default="auto",
        description='Repairs of what the server gets wrong: "auto" recognises them, a list names them, '
        "an empty list repairs nothing.",
    )
    certificates: File | None = Field(
        default=None,
        description="For nbds: directory with ca-cert.pem and perhaps client-cert.pem, client-key.pem and"
        " ca-crl.pem. Default: the system's CAs.",
    )
    psk: File | None = Field(
        default=None,
        description="For nbds: a file of pre-shared keys, as psktool makes it, instead of certificates.",
    )
    psk_user: str | None = Field(
        default=None, description="Which of its users to be. Default: the URI's, or the only one."
    )
    # The default costs a wait at worst; the other may spread one disk's writes over two disks.
    same_storage: bool = Field(
        default=False,
        description="Wherever the URIs lead, it is to the same disks: all addresses of a name may be used."
        " Otherwise the first that answers is kept to.",
    )
    trust_allocation: bool = Field(
        default=False,
        description="Believe base:allocation of a server that looks like qemu 2.11 to 3.1."
        " Only for those that run without --offset and --partition.",
    )
    # Some servers have one disk under all names, and cannot be asked.
    canonical_names: bool = Field(
        default=False,
        description="Every export name of the server is a disk of its own. Otherwise two names may be one disk:"
        " parts of blocks are not written under both at a time, and rules want exact names.",
    )
    # Safe with any server: it sees what it would see without us.
    connections: ConnectionsWritten = Field(
        default=PER_CLIENT,
        description='Connections to the server: "per-client" has one for each client, "shared" one for all of'
        ' an export\'s clients, 4 four for each client, "shared:4" four for all. Default: "per-client".',
    )
    # A disk that is slower than hoped for is better than none.
    connections_required: bool = Field(
        default=False,
        description="Refuse exports that cannot have so many connections, rather than serve them over one.",
    )
    stripe: Stripe = Field(
        default=LEAST_STRIPE_BYTES,
        description="Where there are several connections, which of them a request takes goes by its offset:"
        " in turns of so many bytes.",
    )
    # Whether a write that was answered on one connection is seen over another before a FLUSH: qemu and the
    # kernel's client think so, nbdkit does not promise it (nbdkit-multi-conn-filter(1)).
    coherence: Literal["flush", "strong"] = Field(
        default="flush",
        description="What CAN_MULTI_CONN means there: that what one connection wrote is seen over others after"
        " a FLUSH, or (strong) as soon as it is answered; then any connection may be taken.",
    )
    # A virtual machine's disk is given up by Linux after 30 to 180 s; a server is restarted in less.
    reconnect_seconds: WaitSeconds = Field(
        default=60,
        description="How long clients wait, connected, for a server whose connection was lost; 0 ends them with"
        " it. With [fleet] the default is twice the longest wait for a home.",
    )
    # The only one that is true of every server and promises nothing that may not be kept.
    unflushed: Literal["sticky", "verify", "replay", "assume-durable"] = Field(
        default="sticky",
        description="What becomes of writes that were answered and not flushed when the connection was lost:"
        " sticky fails the next FLUSH, verify reads them back, replay writes them again, assume-durable trusts"
        " the server to have kept them.",
    )
    sole_writer: bool = Field(
        default=False,
        description="Nobody but this gateway writes to the disks. Needed for replay, which would undo what"
        " others wrote.",
    )
    # A server that lost what it had flushed cannot be told by anything else.
    identity: Literal["check", "trust"] = Field(
        default="check",
        description="Whether it is the same disk that is there after a reconnect: check reads back some of what"
        " was flushed and ends sessions if it is gone; trust does not, for disks that others write to as well.",
    )
    # Some seconds of a fast disk, and little of a server's memory.
    replay_bytes: ReplayBytes = Field(
        default=256 << 20,
        description="How much replay keeps of an export; when it is full, the gateway sends a FLUSH.",
    )
    unknown_writes: Literal["reissue", "eio"] = Field(
        default="reissue",
        description="What becomes of writes that were not answered when the connection was lost: they are sent"
        " again, or fail with EIO.",
    )
    # Longer than a server's disk takes for what it has begun, most of the time. Nothing proves it.
    late_write_seconds: WaitSeconds = Field(
        default=30,
        description="How long after the loss such a write is held back, and all that overlap it; where it is on"
        " the disk already, only newer writes: the old server may still be at it.",
    )
    # Not the default: many sockets are listened at by one process and served by others, and it cannot be seen
    # for certain.
    server_is_peer: bool = Field(
        default=False,
        description="The process that listens at the Unix socket is the one that writes: when it has ended,"
        " nothing is held back.",
    )
    # A disk that sleeps or a network that is mended may take any time.
    stall_seconds: WaitSeconds = Field(
        default=0,
        description="After so long without any answer, reads are tried over another connection; 0 waits.",
    )
    # None: they cost the server something, and the only place of one that serves one client. At most as many as
    # a burst of clients is worth, for each is renewed every few minutes.
    warm: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Connections to the server that are kept ready for the next clients, once one was served.",
    )
    # Never, because a server may end with its last connection.
    health_check_seconds: WaitSeconds = Field(
        default=0,
        description="How often to see, by connecting, whether a server that no client asks for is there;"
        " 0 never does.",
    )

    # Where several servers are behind one gateway, that one is away is no reason to send its clients elsewhere.
    required: bool = Field(
        default=False,
        description="/readyz of [admin] says that the gateway is not ready while this server is down.",
    )

    @property
    def nbd_uris(self) -> tuple[NbdUri, ...]:
        """Where it is connected to; none, if it is started by command, or in here."""
        return (self.uri,) if isinstance(self.uri, NbdUri) else self.uris

    @property
    def secure(self) -> bool:
        """It is spoken to over TLS alone."""
        return any(uri.tls for uri in self.nbd_uris)  # of several, all or none

    @cached_property
    def export(self) -> str | None:
        """The one export that the URI names; None where the server's names are all to be had."""
        uri = next(iter(self.nbd_uris), None)  # of several, all name the same
        return uri.export if uri is not None and uri.export_named else None

    def __str__(self) -> str:
        if self.command is not None:
            return " ".join(self.command)
        return " or ".join(map(str, self.uris or (self.uri,)))
