"""Servers of upstreams that no configuration names."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable

from gateway.config import Upstream
from gateway.upstream.backends import Backend, Connect
from gateway.upstream.mode import Mode
from gateway.upstream.recipe import Recipe
from gateway.upstream.server import Server
from gateway.upstream.slots import Slots


def server_to(
    name: str,
    *connects: Connect,
    disks: Hashable = None,
    slots: Slots | None = None,
    mode: Mode | None = None,
    chance: Callable[[], float] = random.random,
    **settings: object,
) -> Server:
    """The server of this name that these connect to, each to a place of its own. Of its `settings`, what is not
    said has its default; so have its `disks`, `slots` and `mode`.
    """
    most = settings.get("max_connections", math.inf)
    assert isinstance(most, int | float)
    backend = Backend(
        (),
        connects,
        disks=object() if disks is None else disks,
        slots=slots or Slots(most),
    )
    recipe = Recipe(name, Upstream().model_copy(update=settings), backend)
    server = Server(recipe, chance=chance)
    if mode is not None:
        server.mode = mode
    return server
