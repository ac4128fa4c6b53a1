"""What `explain` finds: the values that `gateway.cli` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.access.rules import Grant
from gateway.config import Connections
from gateway.config.connections import PER_CLIENT
from gateway.policy import Charge, Client
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export, Offer
from gateway.protocol.server_role import Description
from gateway.scan.plan import Way
from gateway.upstream.coherence import Decision
from gateway.wire.constants import Cmd
from gateway.wire.framing import Framing
from gateway.wire.handshake import BlockSizes

UPSTREAM, QUIRKS, GATEWAY = "upstream", "quirks", "gateway"
"""The steps of an export that no policy makes."""


@dataclass(frozen=True, slots=True)
class Waypoint:
    """An export on its way from the upstream to the client, after one of those that change it."""

    name: str
    """Who has changed it: one of the constants above, or a policy."""
    size: int
    flags: int
    base: int = 0
    block_sizes: BlockSizes | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Restriction:
    """What a command must not do, or what becomes of its flags."""

    what: str
    error: str | None = None
    """The error that a client gets; None: it notices nothing."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class ContextSaid:
    """What becomes of a meta context that the upstream has."""

    name: str
    by: str | None = None
    """The policy (or key of [[export]]) that keeps it from the client; None: the client may have it."""
    fails: str | None = None
    """Why a client that asks for it is refused; None: it is left out."""
    would: str | None = None
    """The policy that would keep it from the client, if it were not only observed."""


@dataclass(frozen=True, slots=True)
class HomeSaid:
    """Which of several workers serves a disk, and why (`gateway.workers.homes`)."""

    worker: int | None
    """Its number; None: the one where the client comes in."""
    workers: int
    of: str
    """What has this home: "disk", "server", or "nowhere"."""
    why: str
    in_fleet: bool = False
    """There are several gateways, and it is one of them."""
    fenced: bool = False
    """An earlier home is cut off before the next one begins."""
    longest_wait: float = 0.0
    """How many seconds another gateway may take to become the home; 0: there is no other."""
    lives_on: float = 0.0
    """How many seconds sessions live on without their home."""


@dataclass(frozen=True, slots=True)
class LimitSaid:
    """A limit that a policy sets for a session as a whole."""

    policy: str
    in_flight: int | None
    charges: tuple[Charge, ...]
    observed: bool = False
    """It is only observed, and holds nothing back."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an export is served to clients of one framing."""

    client: Framing
    link: Framing
    export: Export
    """As the upstream means it: after the quirks have repaired it."""
    connections: Decision
    """How many of the wanted connections there are, going by what the first one tells."""
    quirks: tuple[str, ...]
    steps: tuple[Waypoint, ...]
    """The first three are the upstream, the quirks, the gateway; then those policies that change something."""
    promised: Offer
    told: Description
    ways: Mapping[Cmd, Way]
    restrictions: Mapping[Cmd, tuple[Restriction, ...]]
    would: tuple[str, ...]
    """What policies that are only observed would change."""
    would_restrict: Mapping[Cmd, tuple[Restriction, ...]]
    """What they would refuse beyond `restrictions`."""


@dataclass(slots=True)
class Report:
    """What a client gets that asks for an export. It is filled in up to where the client is refused."""

    client: Client
    asked: str
    tried: tuple[tuple[str, str], ...] = ()
    """The rules before the one that matches, and why they do not."""
    grant: Grant | None = None
    why: str = ""
    """Why the client is denied, for the operator; empty if it is not."""
    refusal: Refusal | None = None
    """What the client is told then."""
    disconnect: bool = False
    """An open session of the client would be ended."""
    would: tuple[str, ...] = ()
    """Why the client would be denied if observed rules and policies were enforced."""
    limits: tuple[LimitSaid, ...] = ()
    uris: tuple[str, ...] = ()
    """The upstream's, if it has several."""
    wanted: Connections = PER_CLIENT
    """How many connections to the upstream are wanted, and for whom."""
    required: bool = False
    """Fewer connections are not enough."""
    home: HomeSaid | None = None
    """Where its disk is served; None: there is one process, which serves all."""
    contexts: tuple[ContextSaid, ...] = ()
    no_contexts: str = ""
    """Why there are no contexts, in the upstream's words."""
    views: list[Explanation] = field(default_factory=list)
    """One for each framing."""
    gone: str = ""
    """The server took the connection for the first views, and none after it: how that was seen."""
