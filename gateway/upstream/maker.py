"""The one maker of `Server`s: for the configuration, for a reload of it, and for an export that is switched."""

from __future__ import annotations

import math
from functools import partial

from gateway.upstream.backends import Connect
from gateway.upstream.mode import mode_of
from gateway.upstream.recipe import Recipe, Tls
from gateway.upstream.server import Server


def make(recipe: Recipe, *tls: Tls) -> Server:
    """Give the server that a recipe describes. `tls` is for each of the backend's places, or there is none."""
    settings, backend, uri = recipe.settings, recipe.backend, recipe.uri
    same = settings.same_storage
    connects: list[Connect]
    connects = [partial(dialler.connect, same_storage=same) for dialler in backend.diallers]
    server = Server(
        recipe.upstream if uri is None else str(uri),
        *(connects or backend.connects),
        connect_seconds=settings.connect_seconds,
        negotiate_seconds=settings.negotiate_seconds,
        keepalive_seconds=settings.keepalive_seconds,
        user_timeout_seconds=settings.user_timeout_seconds,
        quirks=settings.quirks,
        trust_allocation=settings.trust_allocation,
        canonical_names=settings.canonical_names,
        tls=tls,
        disks=backend.disks,
        same_storage=same,
        max_connections=settings.max_connections or math.inf,
        connections=backend.connections,
        mode=mode_of(settings),
        keep_warm=settings.warm,
        check_seconds=settings.health_check_seconds,
        peer_of=backend.processes.at if settings.server_is_peer else backend.peer_of,
        processes=backend.processes if settings.server_is_peer else None,
        started_by_us=settings.command is not None and uri is None,
    )
    server.recipe = recipe
    return server
