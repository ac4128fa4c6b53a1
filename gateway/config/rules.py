"""`[[rule]]`: which clients may reach which exports, and with which policies.

What a policy's options may be is known to the policy; here they stay as they are written, and `checks` asks the
policy what it thinks of them.
"""

import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from gateway.config.base import TEXT_OR_TEXTS, Section, shown, text, texts

Network = IPv4Network | IPv6Network
Mode = Literal["enforce", "observe"]


@dataclass(frozen=True, slots=True)
class Use:
    """One policy at its place: `{ use = "limit", connections = 4 }`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    observed: bool = False
    """What it would refuse is logged, and passes."""


def _use(value: object) -> Use:
    if not isinstance(value, dict):
        raise ValueError(f'expected a table such as {{ use = "readonly" }}, got {shown(value)}')
    if "use" not in value:
        given = ", ".join(value) or "an empty table"
        raise ValueError(f'expected use = "NAME" in each policy, got {given}')
    if not isinstance(value["use"], str):
        raise ValueError(f'expected use = "NAME" in each policy, got {shown(value["use"])}')
    options = {key: option for key, option in value.items() if key not in ("use", "mode")}
    mode = value.get("mode", "enforce")
    if mode not in ("enforce", "observe"):
        raise ValueError(f'expected mode = "enforce" or "observe", got {shown(mode)}')
    return Use(value["use"], options, mode == "observe")


MAX_POLICIES = 64
"""At one place. People write them, and each that has a hook is a step of every command."""


def _uses(value: object) -> tuple[Use, ...]:
    if not isinstance(value, list):
        raise ValueError(f'expected a list such as [ {{ use = "readonly" }} ], got {shown(value)}')
    if len(value) > MAX_POLICIES:
        raise ValueError(f"expected {MAX_POLICIES} policies at most, got {len(value)}")
    return tuple(_use(each) for each in value)


Uses = Annotated[
    tuple[Use, ...],
    PlainValidator(_uses),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "use": {"type": "string"},
                    "mode": {"enum": ["enforce", "observe"]},
                },
                "required": ["use"],
            },
        }
    ),
]


def network(value: object) -> Network:
    """A network or a single address. Raises ValueError."""
    said = text(value)
    try:
        found = ip_network(said, strict=False)
    except ValueError:
        raise ValueError(
            f'expected a network as in "10.0.0.0/8" or an address, got {shown(said)}'
        ) from None
    if "%" in said:
        raise ValueError(
            f"addresses are compared without what follows the %, remove it in {shown(said)}"
        )
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    if mapped is not None and found.prefixlen >= 96:
        meant = f"{mapped}/{found.prefixlen - 96}"
        raise ValueError(f'clients with IPv4 addresses are in "{meant}", not in {shown(said)}')
    try:
        return ip_network(said)
    except ValueError:
        address = said.partition("/")[0]
        raise ValueError(
            f'expected a network, "{found}", or an address, "{address}", got {shown(said)}'
        ) from None


def _networks(value: object) -> tuple[Network, ...]:
    return tuple(network(each) for each in texts(value))


def _unix_users(value: object) -> tuple[int, ...]:
    several = value if isinstance(value, list) else [value]
    if not several:
        raise ValueError(f"expected a user's name in quotes, or number, got {shown(value)}")
    return tuple(_unix_user(each) for each in several)


def _unix_user(value: object) -> int:
    """A user's number: what the kernel tells of who connects."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a user's name in quotes, or number, got {shown(value)}")
    try:
        return pwd.getpwnam(value).pw_uid
    except (KeyError, ValueError):
        if value.isascii() and value.isdigit():
            return int(value)
        raise ValueError(f"there is no user {shown(value)} on this machine") from None


def _fingerprints(value: object) -> tuple[str, ...]:
    return tuple(_fingerprint(each) for each in texts(value))


def _fingerprint(said: str) -> str:
    digits = said.replace(":", "").lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError(
            f"expected the SHA-256 of a certificate, 64 hexadecimal digits, got {shown(said)}"
        )
    return digits


def _dns_patterns(value: object) -> tuple[str, ...]:
    return tuple(each.lower() for each in texts(value))  # RFC 4343: case does not matter


Patterns = Annotated[tuple[str, ...], PlainValidator(texts), TEXT_OR_TEXTS]
DnsPatterns = Annotated[tuple[str, ...], PlainValidator(_dns_patterns), TEXT_OR_TEXTS]
Fingerprints = Annotated[tuple[str, ...], PlainValidator(_fingerprints), TEXT_OR_TEXTS]
Networks = Annotated[tuple[Network, ...], PlainValidator(_networks), TEXT_OR_TEXTS]
UnixUsers = Annotated[
    tuple[int, ...],
    PlainValidator(_unix_users),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "array", "minItems": 1}]}
    ),
]


class Certificate(Section):
    """`certificate` of `who`: what the client's certificate says, by its parsed names."""

    cn: Patterns | None = Field(
        default=None, description="Its only common name; a subject with several matches nothing."
    )
    issuer_cn: Patterns | None = Field(
        default=None, description="The only common name of who issued it."
    )
    san_dns: DnsPatterns | None = Field(
        default=None, description="One of its DNS names; case does not matter."
    )
    san_uri: Patterns | None = Field(default=None, description="One of its URIs.")
    fingerprint: Fingerprints | None = Field(
        default=None, description="Its SHA-256, in hexadecimal digits, with or without colons."
    )


class Who(Section):
    """`who` of `[[rule]]`: all keys must hold, and a list means any of its members."""

    certificate: Certificate | None = Field(
        default=None, description="A table of patterns that the client's certificate matches."
    )
    network: Networks | None = Field(
        default=None, description="Networks or addresses that the client comes from."
    )
    psk_user: Patterns | None = Field(
        default=None, description="The user of the pre-shared key that the client has."
    )
    unix_user: UnixUsers | None = Field(
        default=None, description="Name or number of the user who connects to a Unix socket."
    )
    tls: bool | None = Field(
        default=None, description="Whether the client comes over TLS, whatever it proved there."
    )


class Rule(Section):
    """`[[rule]]`: clients, and what they may reach. The first that matches wins; with any rule, whom none
    matches is denied.
    """

    name: str | None = Field(
        default=None, description="What the log and explain call it. Default: its number."
    )
    who: Who = Field(default_factory=lambda: Who(), description="Who is meant. Default: everybody.")
    exports: Patterns = Field(
        default=("*",), description="Names of [[export]]s, or patterns of them. Default: all."
    )
    tickets: bool | None = Field(
        default=None,
        description="true: it is for tickets alone (`nbd-gateway export add`); false: for none. Default: for"
        " tickets and exports alike.",
    )
    policies: Uses = Field(
        default=(),
        description="Policies, the first nearest to the client, before the export's own.",
    )
    deny: bool = Field(default=False, description="They may not have these exports.")
    hide: bool = Field(
        default=False, description="With deny: as if there were no such exports at all."
    )
    disconnect: bool = Field(
        default=False,
        description="With deny: sessions that are open when the rule comes into force are ended.",
    )
    mode: Mode = Field(
        default="enforce",
        description="observe: what the rule and its policies would refuse is logged, and passes.",
    )

    def means(self, name: str) -> bool:
        """Say whether one of its patterns is for a name (`Config.means` says whether it means the export)."""
        return any(fnmatchcase(name, pattern) for pattern in self.exports)
