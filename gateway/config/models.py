"""Every key of gateway.toml: its type, its default and its reason.

The models check what one value alone can tell; `checks.py` has the rest, so take a Config from `load`,
`parse` or `build`, which run both. Keys are in kebab-case in the file, snake_case here. Fields hold parsed
values: whoever reads a Config never parses anything again.

Numbers are checked strictly ("10" is no number) because a file is written by people, who mean what they
write; durations have "seconds" in their names because people do not read units elsewhere.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from gateway.config.admin import Admin
from gateway.config.base import Section, shown, text, written_as
from gateway.config.rules import Network, Rule, Use, Uses, network
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
from gateway.uri import NbdUri, UriError, check_name, parse_nbd_uri

# ---- values ----


@dataclass(frozen=True, slots=True)
class SocketOwner:
    """Who owns a Unix socket's file; None leaves it as it is created."""

    user: str | None
    group: str | None

    def __str__(self) -> str:
        return (self.user or "") + (f":{self.group}" if self.group is not None else "")


Unaligned = Literal["rmw", "refuse", "error"]
Proxy = Network | Literal["unix"]
"""Where a trusted load balancer is."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where one export name of ours leads: the upstream (a key of `Config.upstream`), the name there."""

    upstream: str
    upstream_name: str
    description: str | None
    unaligned: Unaligned = "rmw"
    synthesise_allocation: bool = False
    read_only: bool = False
    stable_contexts_only: bool = False
    tls_required: bool = False
    uses: tuple[Use, ...] = ()
    """The export's own policies."""
    hide: bool = False
    """To whom it is denied, there is no such export."""
    number: int = 0
    """Which of `Config.exports` it comes from."""


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


def _description(value: object) -> str:
    return check_name(text(value), text(value), what="a description")


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


ListenUri = Annotated[NbdUri, *written_as(_listen_uri)]
Description = Annotated[str, *written_as(_description)]
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


def exact_name(pattern: str) -> str | None:
    """Give the only name that a pattern matches; None if there are more. `vm[*]` is the exact name `vm*`."""
    literal = re.sub(r"\[([*?\[])\]", "", pattern)
    if re.search(r"[*?]|\[.*\]", literal):
        return None
    return re.sub(r"\[([*?\[])\]", r"\1", pattern)


class Contexts(Section):
    """`contexts` of `[[export]]`: which meta contexts are offered."""

    stable_only: bool = Field(
        default=False,
        description="Hide what may change while a client reads it: dirty bitmaps of a writable disk, from those"
        " for whom it is read-only.",
    )


class Export(Section):
    """`[[export]]`: names that clients may ask for, and where they lead. The first match wins."""

    name: Name = Field(
        description='The name that clients ask for, or a pattern with * ? [abc]; "" is the default export.'
    )
    upstream: str = Field(description="The NAME of one [upstream.NAME].")
    upstream_name: Name | None = Field(
        default=None,
        description="The name to ask the server for. Default: the one that the client asked for.",
    )
    description: Description | None = Field(
        default=None, description="Text that a list of exports shows for this name."
    )

    unaligned: Unaligned = Field(
        default="rmw",
        description="What to do where the server's blocks are larger than a byte: rmw serves requests of any"
        " alignment by reading, changing and writing whole blocks; refuse turns away clients that do not ask"
        " for block sizes; error answers unaligned requests with EINVAL.",
    )
    synthesise_allocation: bool = Field(
        default=False,
        description="Offer base:allocation where the server has none, with all of the disk allocated.",
    )
    tls: Literal["require"] | None = Field(
        default=None,
        description='"require": only for clients over TLS; others are not shown it either.',
    )
    read_only: bool = Field(default=False, description="Refuse whatever would change the disk.")
    contexts: Contexts = Field(default_factory=lambda: Contexts())
    policies: Uses = Field(
        default=(), description="Policies for every client, behind those of the rule that matches."
    )
    hide: bool = Field(
        default=False, description="To whom it is denied, there is no such export at all."
    )

    @cached_property
    def exact_name(self) -> str | None:
        """The only name that this matches; None for a pattern."""
        return exact_name(self.name)

    def matches(self, name: str) -> bool:
        """Whether a client that asks for `name` is meant."""
        return fnmatchcase(name, self.name)


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
    log: Log = Field(default_factory=lambda: Log())
    control: Control = Field(default_factory=lambda: Control())
    # Off: it is one more thing that listens, and another process.
    admin: Admin | None = Field(
        default=None, description="Metrics, health, an API and a page for browsers, over HTTP."
    )

    @cached_property
    def exports(self) -> tuple[Export, ...]:
        """The exports as written; if there are none, those that the only upstream's URI implies.

        A URI that names an export serves it under its own name and as the default; any other passes
        every name through.
        """
        if self.export:
            return self.export
        [(upstream, settings)] = self.upstream.items()
        name = settings.export
        if name is None:
            return (_rule("*", upstream),)
        return (_rule(re.sub(r"([*?\[])", r"[\1]", name), upstream), _rule("", upstream))

    def route(self, name: str) -> Route | None:
        """Where a client that asks for `name` is led; None if no rule lets it through."""
        for number, rule in enumerate(self.exports):
            if rule.matches(name):
                upstream_name = rule.upstream_name
                if upstream_name is None:
                    upstream_name = self.upstream[rule.upstream].export
                return Route(
                    rule.upstream,
                    name if upstream_name is None else upstream_name,
                    rule.description,
                    rule.unaligned,
                    rule.synthesise_allocation,
                    rule.read_only,
                    rule.contexts.stable_only,
                    rule.tls is not None,
                    rule.policies,
                    rule.hide,
                    number,
                )
        return None


def _rule(name: str, upstream: str) -> Export:
    return Export.model_validate({"name": name, "upstream": upstream})
