"""A gateway that a test asks over its control socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio.testing

from gateway.admin.asking import ask
from gateway.admin.control import Asked, ControlAnswer, ControlSocket
from gateway.app import ticketing
from gateway.app.switching import verbs_of
from gateway.sessions.pausing import Pauses
from tests.app.houses import LISTEN, House, house
from tests.tools.patience import HANG_SECONDS


def verbs(gateway: House) -> dict[str, Any]:
    pauses = Pauses(gateway.service, gateway.nursery)
    return {
        **verbs_of(gateway.service, pauses, lambda: gateway.now.keyring),
        **ticketing.verbs_of(gateway.service),
    }


SERVER = """
[[listen]]
uri = "nbd+unix:///?socket=DIR/h.sock"
[upstream.n]
uri = "memory:1M"
"""
"""Another gateway is the server: it has vm-1, vm-2 and disk, and no other name."""


NAMES = "".join(
    f'[[export]]\nname = "{name}"\nupstream = "n"\nupstream-name = ""\n'
    for name in ("vm-1", "vm-2", "disk")
)


THROUGH = '[upstream.u]\nuri = "nbd+unix:///?socket=DIR/h.sock"\n'


class Asking:
    """A gateway behind its control socket, before another one."""

    def __init__(self, gateway: House, path: Path) -> None:
        self.gateway = gateway
        self.path = path
        self.heard: list[Asked] = []

    async def ask(self, verb: str, **arguments: object) -> ControlAnswer:
        named = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
        with trio.fail_after(HANG_SECONDS):
            return await ask(self.path, verb, named)

    @property
    def paused(self) -> set[str]:
        return set(self.gateway.service.paused)


@asynccontextmanager
async def asking(workdir: Path, config: str) -> AsyncIterator[Asking]:
    (workdir / "there").mkdir()
    server = (SERVER + NAMES).replace("DIR", str(workdir))
    async with (
        house(workdir / "there", server),
        house(workdir, LISTEN + config) as gateway,
    ):
        control = ControlSocket(workdir / "c")
        made = Asking(gateway, workdir / "c")
        run = partial(control.run, short=lambda _number: None, heard=made.heard.append)
        gateway.nursery.start_soon(run, verbs(gateway), gateway.nursery)
        try:
            yield made
        finally:
            await control.aclose()
