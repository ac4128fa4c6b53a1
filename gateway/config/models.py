"""Every key of gateway.toml: its type, its default and its reason.

The models check what one value alone can tell; `checks.py` has the rest, so take a Config from `load`,
`parse` or `build`, which run both. Keys are in kebab-case in the file, snake_case here. Fields hold parsed
values: whoever reads a Config never parses anything again.

Numbers are checked strictly ("10" is no number) because a file is written by people, who mean what they
write; durations have "seconds" in their names because people do not read units elsewhere.

This is longer than other modules: each key has its reason beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from gateway.config.admin import Admin
from gateway.config.base import Section, shown, text, written_as
from gateway.config.exports import Export, Route, Ticket
from gateway.config.fleet import RECONNECT_WAITS, Fleet, late_writes
from gateway.config.rules import Network, Rule, network
from gateway.config.upstream import Upstream
from gateway.config.values import (
    Descriptor,
    File,
    FilePattern,
    KeepaliveSeconds,
    Name,
    Seconds,
    Socket,
    SocketMode,
    UserTimeoutSeconds,
    WaitSeconds,
    without_user,
)
from gateway.uri import NbdUri, UriError, parse_nbd_uri

# ---- values ----


@dataclass(frozen=True, slots=True)
class SocketOwner:
    """Who owns a Unix socket's file; None leaves it as it is created."""

    user: str | None
    group: str | None

    def __str__(self) -> str:
        return (self.user or "") + (f":{self.group}" if self.group is not None else "")


Proxy = Network | Literal["unix"]
"""Where a trusted load balancer is."""


def _listen_uri(value: object) -> NbdUri:
    uri = without_user(parse_nbd_uri(text(value)), "a listener is nobody's")
    if tls := [key for key in uri.parameters if key.startswith("tls-")]:
        raise UriError(
            str(uri),
            f'"{tls[0]}" is for clients; a listener has the keys tls, certificates and psk',
        )
    if uri.export_named:
        raise UriError(
            str(uri), f'a listener has no export name, remove "{uri.export}": [[export]] has names'
        )
    return uri


HANDSHAKE_FLAGS = ("FIXED_NEWSTYLE", "NO_ZEROES")
"""All that there are ("Handshake flags", proto.md)."""


def _handshake_flags(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or any(flag not in HANDSHAKE_FLAGS for flag in value):
        wrong = value
        if isinstance(value, list):
            wrong = next(flag for flag in value if flag not in HANDSHAKE_FLAGS)
        known = " and ".join(map(shown, HANDSHAKE_FLAGS))
        raise ValueError(
            f"expected a list of {known} or of one or none of them, got {shown(wrong)}"
        )
    return tuple(flag for flag in HANDSHAKE_FLAGS if flag in value)


def _proxies(value: object) -> tuple[Proxy, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            'expected a list of networks whose load balancers are trusted, as in ["10.0.0.0/8"], or '
            f'["unix"], got {shown(value)}'
        )
    return tuple("unix" if proxy == "unix" else network(proxy) for proxy in value)


def _socket_owner(value: object) -> SocketOwner:
    user, colon, group = text(value).partition(":")
    if not (user or group) or (colon and not group) or ":" in group or "\0" in text(value):
        raise ValueError(f'expected "user", "user:group" or ":group", got {shown(value)}')
    return SocketOwner(user or None, group or None)


ROUTES_KEPT = 2048
"""For so many names it is kept where they lead: a client that has a list asks for each in turn, three times."""

LONG_NAME = 256
"""Where a name of more characters leads is not kept: clients may ask for any, and this bounds it to 2 MiB."""

MAX_WORKERS = 64
"""More than a machine has processors that are of use to one gateway; what a restart asks of all stays short."""


def _workers(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WORKERS:
        raise ValueError(
            f'expected a number from 1 to {MAX_WORKERS}, or "auto", got {shown(value)}'
        )
    return value


Workers = Annotated[
    int | Literal["auto"],
    PlainValidator(_workers),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}, {"const": "auto"}]}
    ),
]
ListenUri = Annotated[NbdUri, *written_as(_listen_uri)]
HandshakeFlags = Annotated[
    tuple[str, ...],
    PlainValidator(_handshake_flags),
    WithJsonSchema({"type": "array", "items": {"enum": list(HANDSHAKE_FLAGS)}}),
]
Proxies = Annotated[tuple[Proxy, ...], *written_as(_proxies, array=True)]
Owner = Annotated[SocketOwner, *written_as(_socket_owner)]

# ---- tables ----


class Listen(Section):
    """`[[listen]]`: an address that clients connect to."""

    uri: ListenUri = Field(
        description="Where clients connect: an NBD URI without an export name. TCP port 0 takes a free one."
    )
    descriptor: Descriptor | None = Field(
        default=None,
        description="The name by which systemd hands the socket over (FileDescriptorName=). Without it, one"
        " that listens at `uri` is taken.",
    )
    # Each client costs two sockets and its buffers. More than this many machines seldom share one
    # gateway, and a client that leaks connections is stopped before it has cost everybody theirs.
    max_connections: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="How many clients this address serves at a time; more are hung up on.",
    )
    # qemu's own limit since CVE-2024-7409: a client that says nothing must not keep a place for ever.
    handshake_seconds: Seconds = Field(
        default=10,
        description="How long a client may take from connecting to the end of its negotiation.",
    )
    # No bound by itself: a virtual machine keeps its disk for months.
    lifetime_seconds: WaitSeconds = Field(
        default=0,
        description="How long a session may last before it is ended in good order; 0: as long as it likes.",
    )
    socket_mode: SocketMode | None = Field(
        default=None,
        description='Permissions of a Unix socket, octal, such as "0660". Default: the umask\'s.',
    )
    socket_owner: Owner | None = Field(
        default=None, description='Owner of a Unix socket: "user", "user:group" or ":group".'
    )
    # A client whose machine lost power sends no FIN, and would keep its upstream link busy for ever.
    # The kernel's own default, two hours, is too long for that.
    keepalive_seconds: KeepaliveSeconds = Field(
        default=60,
        description="Idle time after which TCP asks whether the client is still there; 0 never asks.",
    )
    # The same for a client that vanishes while we send to it; the kernel's default is about 15 minutes.
    user_timeout_seconds: UserTimeoutSeconds = Field(
        default=60,
        description="How long sent data may stay unacknowledged before TCP gives the client up; "
        "0 leaves it to the kernel.",
    )
    # Whoever may send such a header may be anybody (proxy-protocol.txt, section 2), so there is no default.
    proxy_protocol: Proxies | None = Field(
        default=None,
        description="Networks (or unix) of load balancers that say with the PROXY protocol who a client is:"
        " their connections have to begin with it, others never do.",
    )
    # NOTLS, SELECTIVETLS and FORCEDTLS of proto.md, "TLS support".
    tls: Literal["off", "allow", "require"] | None = Field(
        default=None,
        description="TLS: off, allow (for clients that want it) or require. Default: off, and require with an"
        " nbds: URI.",
    )
    certificates: File | None = Field(
        default=None,
        description="Directory with ca-cert.pem, server-cert.pem, server-key.pem and perhaps ca-crl.pem.",
    )
    # nbdkit's default is off, and its users are surprised at whom it lets in.
    verify_client: bool | None = Field(
        default=None,
        description="Whether clients need a certificate of that CA. Default: true.",
    )
    psk: File | None = Field(
        default=None,
        description="A file of pre-shared keys, as psktool makes it: a client that has one is let in.",
    )
    # qemu up to 2.5 knows nothing else when it is not told an export name, and nbd-client before 3.10
    # neither (Q-C13, Q-L4).
    style: Literal["newstyle", "oldstyle"] = Field(
        default="newstyle",
        description="How clients are greeted: oldstyle clients cannot ask for anything, and get `export`.",
    )
    export: Name = Field(
        default="",
        description="The name whose export the clients of an oldstyle listener get. "
        "Default: the default export.",
    )
    # nbd-client 3.1 to 3.8 takes NO_ZEROES for READ_ONLY (Q-L1).
    handshake_flags: HandshakeFlags = Field(
        default=HANDSHAKE_FLAGS,
        description="What the newstyle greeting offers. nbd-client 3.1 to 3.8 needs it to be without "
        "NO_ZEROES; without FIXED_NEWSTYLE clients can only ask for an export by its name.",
    )

    @property
    def tls_mode(self) -> Literal["off", "allow", "require"]:
        """`tls`, or what goes without saying."""
        return self.tls or ("require" if self.uri.tls else "off")


class Log(Section):
    """`[log]`: what is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important messages that are written."
    )
    # People look at a gateway first; a collector of logs is set up once.
    format: Literal["console", "json"] = Field(
        default="console", description="Lines for people, or one JSON object a line for programs."
    )


class Control(Section):
    """`[control]`: how a gateway is spoken to while it runs."""

    socket: Socket | None = Field(
        default=None,
        description="Path of a Unix socket for `nbd-gateway reload`. Its user and root alone may connect.",
    )
    # Off: who edits a file in place would have each half of it tried.
    reload_on_change: bool = Field(
        default=False, description="Take this file up whenever it has changed."
    )


class Tickets(Section):
    """`[tickets]`: exports that are made while the gateway runs."""

    directory: File | None = Field(
        default=None,
        description="Where they are kept, a file each. Without it, none can be made.",
    )
    # A directory is one gateway's, and all of a fleet have the same tickets.
    etcd: bool = Field(
        default=False,
        description="For a gateway of a [fleet], in place of a directory: they are kept in its etcd, and are"
        " there at all of its gateways.",
    )

    @property
    def are_kept(self) -> bool:
        """They can be made."""
        return self.etcd or self.directory is not None


class Config(Section):
    """The whole file."""

    # Not min_length: pydantic counts only what is valid, and would complain of a broken one twice.
    listen: Annotated[tuple[Listen, ...], Field(strict=False)] = Field(
        json_schema_extra={"minItems": 1},
        description="The addresses that clients connect to; at least one.",
    )
    upstream: dict[str, Upstream] = Field(
        json_schema_extra={"minProperties": 1, "propertyNames": {"minLength": 1}},
        description="The servers behind the gateway, each with a name of your choice; at least one.",
    )
    export: Annotated[tuple[Export, ...], Field(strict=False)] = Field(
        default=(),
        description="Which names lead where. Without any, all names pass through to the only upstream.",
    )
    rule: Annotated[tuple[Rule, ...], Field(strict=False)] = Field(
        default=(),
        description="Who may reach what, in order. Without any, everybody may reach everything.",
    )
    include: Annotated[tuple[FilePattern, ...], Field(strict=False)] = Field(
        default=(),
        description="Files with more of [[listen]], [upstream.NAME], [[export]] and [[rule]]; a name may be a"
        " pattern, as in conf.d/*.toml.",
    )
    user: str | None = Field(
        default=None,
        description="The user to become once all is listened on, for a gateway that root starts.",
    )
    group: str | None = Field(
        default=None, description="The group to become. Default: the user's own."
    )
    # 0: who restarts a gateway wants it now, unless he says otherwise.
    leave_seconds: WaitSeconds = Field(
        default=0,
        description="After SIGTERM, how long sessions may go on before they are ended.",
    )
    # Long enough for what a disk under load takes, short enough for systemd's TimeoutStopSec of 90 s.
    drain_seconds: WaitSeconds = Field(
        default=30,
        description="When sessions are ended, how long requests in flight may take before connections are cut.",
    )
    # One, until there are more clients than one processor serves: several share nothing but the listeners.
    workers: Workers = Field(
        default=1,
        description='Processes that serve: disks are spread over them. "auto": one for each processor.',
    )
    log: Log = Field(default_factory=lambda: Log())
    control: Control = Field(default_factory=lambda: Control())
    # Off: it is one more thing that listens, and another process.
    admin: Admin | None = Field(
        default=None, description="Metrics, health, an API and a page for browsers, over HTTP."
    )
    tickets: Tickets = Field(default_factory=lambda: Tickets())
    # Off: it needs etcd.
    fleet: Fleet | None = Field(
        default=None, description="Several gateways that serve as one, by way of etcd."
    )

    @model_validator(mode="after")
    def _survive_homes(self) -> "Config":
        """In a fleet, sessions live on for longer than another home may take to begin."""
        if self.fleet is None:
            return self
        places = {name: (u.nbd_uris, u.late_write_seconds) for name, u in self.upstream.items()}
        for name, late in late_writes(places).items():
            if "reconnect_seconds" not in self.upstream[name].model_fields_set:
                seconds = RECONNECT_WAITS * self.fleet.longest_wait(late)
                update = {"reconnect_seconds": seconds}
                self.upstream[name] = self.upstream[name].model_copy(update=update)
        return self

    @cached_property
    def exports(self) -> tuple[Export, ...]:
        """The exports as written; if there are none, those that the only upstream's URI implies.

        A URI that names an export serves it under its own name and as the default; any other passes
        every name through. Where tickets are made, nothing is implied: a name that leads to a disk without
        one would make them worth nothing.
        """
        if self.export or self.tickets.are_kept:
            return self.export
        [(upstream, settings)] = self.upstream.items()
        name = settings.export
        if name is None:
            return (_rule("*", upstream),)
        return (_rule(re.sub(r"([*?\[])", r"[\1]", name), upstream), _rule("", upstream))

    @cached_property
    def exact_names(self) -> frozenset[str]:
        """The names that exports have which are no patterns."""
        return frozenset(each.exact_name for each in self.exports if each.exact_name is not None)

    @cached_property
    def issued(self) -> Mapping[str, Ticket]:
        """The tickets that are in force, by name. Whoever keeps them (`gateway.tickets`) changes this while the
        gateway runs; all else of a Config stays as it was read.
        """
        return {}

    def with_tickets(self, issued: Mapping[str, Ticket]) -> "Config":
        """Give this configuration with tickets, which are those of the mapping at any time."""
        config = self.model_copy()
        config.__dict__["issued"] = issued
        return config

    def means(self, rule: Rule, name: str) -> bool:
        """Say whether a rule is about an export of ours, whoever asks for it."""
        return rule.tickets in (None, name in self.issued) and rule.means(name)

    def route(self, name: str) -> Route | None:
        """Where a client that asks for `name` is led; None if nothing lets it through. A ticket stands before
        patterns that match its name.
        """
        ticket = self.issued.get(name)
        if ticket is not None:
            return self._led(name, ticket, name, ticket)
        if len(name) > LONG_NAME:
            return self._written_route(name)
        kept = self._kept_routes
        if name not in kept:
            if len(kept) >= ROUTES_KEPT:
                kept.clear()
            kept[name] = self._written_route(name)
        return kept[name]

    @cached_property
    def _kept_routes(self) -> dict[str, Route | None]:
        # No `lru_cache`: a configuration is pickled for each worker.
        return {}

    def _written_route(self, name: str) -> Route | None:
        for number, each in enumerate(self.exports):
            if fnmatchcase(name, each.name):
                return self._led(name, each, number)
        return None

    def _led(
        self, name: str, export: Export, place: int | str, ticket: Ticket | None = None
    ) -> Route:
        upstream_name = export.upstream_name
        if upstream_name is None:
            upstream_name = self.upstream[export.upstream].export
        return Route(
            export.upstream,
            name if upstream_name is None else upstream_name,
            export.description,
            export.unaligned,
            export.synthesise_allocation,
            export.read_only,
            export.contexts.stable_only,
            export.tls is not None,
            export.policies,
            export.hide,
            place,
            ticket,
        )


def _rule(name: str, upstream: str) -> Export:
    return Export.model_validate({"name": name, "upstream": upstream})
