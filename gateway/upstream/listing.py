"""What LIST shows: the upstreams' names that the configuration lets through, as they are called here.

A pattern shows what the upstream lists and the pattern matches. A name that the configuration spells out is
shown in any case: servers need not list what they serve (nbdkit; nbd-server without `allowlist`; oldstyle
ones), and a client that falls back from GO looks its name up in LIST (Q-C17). A dead upstream only shortens
the list. So does one that takes a single connection, which clients share: of that, what they share is shown.
It keeps the first who asks waiting (`LIST_SECONDS`), and is not asked for a while then.

Where clients have links of their own, and there is one upstream alone, it is asked on the connection that is
for the client's next question (`gateway.clients.inquiry`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import trio

from gateway.config import Config
from gateway.protocol.errors import Refusal
from gateway.upstream.negotiation import listed_apart
from gateway.upstream.server import Server
from gateway.wire.handshake import ListedExport

LIST_SECONDS = 15
"""How long all upstreams together may take to say what they have; the list goes without those that do not. More
than `connect-seconds`, so that the log can say why one is missing."""


async def listed_exports(
    config: Config,
    servers: Mapping[str, Server],
    *,
    secure: bool,
    in_use: Callable[[Server], list[str]] = lambda _server: [],
    ask_server: Callable[[Server], Awaitable[list[ListedExport]]] | None = None,
) -> list[ListedExport]:
    """Ask every upstream that a rule leads to for its exports, by `ask_server` if that is given; of one that
    does not say, those that are known to be there because they are `in_use`. Raises `Refusal` if the only one
    refuses and the configuration names nothing by itself.
    """
    told: dict[str, list[ListedExport] | None] = dict.fromkeys(
        rule.upstream for rule in config.exports
    )
    refusals: list[Refusal] = []
    silent: set[str] = set()

    async def ask(upstream: str) -> None:
        silent.add(upstream)
        try:
            told[upstream] = await (ask_server or exports_of)(servers[upstream])
        except Refusal as refusal:
            refusals.append(refusal)
        silent.discard(upstream)

    known = {upstream: in_use(servers[upstream]) for upstream in told}
    with trio.move_on_after(LIST_SECONDS):
        async with trio.open_nursery() as nursery:
            for upstream in told:
                if not (known[upstream] and servers[upstream].listed.is_silent):
                    nursery.start_soon(ask, upstream)
    for upstream, theirs in told.items():
        if theirs is None:
            told[upstream] = [ListedExport(name, "") for name in known[upstream]]
    for upstream in silent:
        servers[upstream].listed.says_nothing()
    exports = visible_exports(config, told, secure=secure)
    if not exports and refusals and len(told) == 1:
        raise refusals[0]
    return exports


def visible_exports(
    config: Config, told: Mapping[str, list[ListedExport] | None], *, secure: bool
) -> list[ListedExport]:
    """Give the list for what each upstream told (None: nothing). What requires TLS is shown to those who
    come over it (`secure`).
    """
    visible: dict[str, ListedExport] = {}
    by_name = {
        upstream: {each.name: each for each in reversed(theirs or ())}
        for upstream, theirs in told.items()
    }
    for rule in config.exports:
        theirs = told[rule.upstream]
        names = [rule.exact_name] if rule.exact_name is not None else _names(theirs)
        for name in names:
            route = config.route(name)
            if name in visible or route is None or route.upstream != rule.upstream:
                continue
            if route.tls_required and not secure:
                continue
            if not name and not config.export and route.upstream_name:
                continue  # the URI's export, which is there under its own name: one disk, listed once
            listed = by_name[rule.upstream].get(route.upstream_name)
            told_there = listed.description if listed else ""
            description = told_there if route.description is None else route.description
            visible[name] = ListedExport(name, description)
    return list(visible.values())


async def exports_of(server: Server) -> list[ListedExport]:
    """Give a server's exports, as they were a moment ago or are now. Raises `Refusal` if it will not say."""
    return await listed_once(server, asks=partial(listed_apart, server))


async def listed_once(
    server: Server, *, asks: Callable[[], Awaitable[list[ListedExport]]]
) -> list[ListedExport]:
    """Give a server's exports, which `asks` finds out if nobody has a moment ago. Raises `Refusal`."""
    return await server.listed.exports(asks)


def _names(theirs: list[ListedExport] | None) -> list[str]:
    return [export.name for export in theirs or ()]
