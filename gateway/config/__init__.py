"""What users write: gateway.toml, read into values that the rest of the gateway can trust.

    texts.py            files -> text -> what it says as TOML
    documents.py        one file or several -> data, with values from elsewhere put in
    lines.py            which line a key stands on, since tomllib does not say
    reading.py          data -> Config, or every problem of it at once, in plain words
    problems.py         what a problem is: a file, a line, a key, a message
    words.py            what pydantic complains of, in the words of those who write the file

    models.py           every key, with its default and its reason: the file's specification
    upstream.py         the keys of [upstream.NAME]
    connections.py      one of these: how many, and for whom
    exports.py          the keys of [[export]], and of a ticket: an export that is made at run time
    rules.py            the keys of [[rule]], and what stands in `policies`
    admin.py            the keys of [admin]
    fleet.py            the keys of [fleet]
    base.py, values.py  what all of them are made of

    checks.py           what one key alone cannot know: names that must exist, keys that exclude each other
    rule_checks.py      the same of rules and policies
    upstream_checks.py  the same of connections
    worker_checks.py    what several workers cannot do yet
    fleet_checks.py     what several gateways cannot do yet
    data.py             what all checks go by: the text's data, and names that others define
    tickets.py          whether what is said makes a ticket, and fits the configuration

    template.py         the file that `nbd-gateway init` writes

A leaf: nothing of the gateway is imported here but `gateway.uri`, and a Config knows no sockets. What
only the machine can tell (whether a host resolves, whether a user exists) is the application's to find. Names
that other packages define (quirks, servers to imitate) are given to `load` as a `Vocabulary`.
"""

from gateway.config.admin import Admin, AdminUri
from gateway.config.connections import PER_CLIENT, Connections
from gateway.config.data import Vocabulary
from gateway.config.documents import read
from gateway.config.exports import Export, NeverTicket, NoTicket, Route, Ticket
from gateway.config.fleet import Fleet
from gateway.config.models import (
    Config,
    Control,
    Listen,
    Log,
    SocketOwner,
)
from gateway.config.problems import ConfigError, Problem, Spot
from gateway.config.reading import checked, load, parse, schema
from gateway.config.rules import Certificate, Network, Rule, Use, Who
from gateway.config.upstream import Upstream

__all__ = [
    "PER_CLIENT",
    "Admin",
    "AdminUri",
    "Certificate",
    "Config",
    "ConfigError",
    "Connections",
    "Control",
    "Export",
    "Fleet",
    "Listen",
    "Log",
    "Network",
    "NeverTicket",
    "NoTicket",
    "Problem",
    "Route",
    "Rule",
    "SocketOwner",
    "Spot",
    "Ticket",
    "Upstream",
    "Use",
    "Vocabulary",
    "Who",
    "checked",
    "load",
    "parse",
    "read",
    "schema",
]
