"""Clients that give a connection up over a reply to what they are still sending: libnbd does, up to 1.22.

How much of a WRITE has been sent when the header is answered is chance, so each is sent several times.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from gateway.embedded import Faults, MemoryDisk, Request, Server
from gateway.wire.constants import Cmd, Errno
from tests.embedded.peers import listening

from .clients import nbdsh, qemu_io
from .gateways import MODE, Gateways
from .servers import unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="nobody else waits for the data")

MIB = 1 << 20
LARGE = 8 * MIB
TIMES = 6

WRITES = """
h.set_strict_mode(0)
h.connect_uri("{uri}")
for _ in range({times}):
    try:
        h.pwrite(bytearray({length}), {at})
    except nbd.Error as error:
        assert error.errno == "{errno}", error
    else:
        assert not "{errno}"
    assert len(h.pread(512, 0)) == 512
"""


def writes(uri: str, *, at: int = 0, errno: str = "") -> None:
    """Write, and see that the connection goes on."""
    nbdsh(WRITES.format(uri=uri, times=TIMES, length=LARGE, at=at, errno=errno))


@pytest.fixture
def early(workdir: Path) -> Iterator[str]:
    """A server that answers large WRITEs when it has seen the header: over 32 MiB into the disk with ENOSPC."""

    def at_once(request: Request) -> int | None:
        if request.command != Cmd.WRITE or request.length < MIB:
            return None
        return Errno.ENOSPC if request.offset >= 32 * MIB else 0

    server = Server({"": MemoryDisk(64 * MIB)}, faults=Faults(answer_early=at_once))
    begun = threading.Event()
    over: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        async with listening(server, workdir):
            over.append((trio.lowlevel.current_trio_token(), scope := trio.CancelScope()))
            begun.set()
            with scope:
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    begun.wait()
    yield f"nbd+unix:///?socket={workdir / 'sock'}"
    [(token, scope)] = over
    token.run_sync_soon(scope.cancel)
    thread.join()


def configured(via: Gateways, workdir: Path, upstream: str, *more: str) -> str:
    """The URI of a gateway before it."""
    listen, config = unix_uri(workdir / "gateway"), workdir / "gateway.toml"
    lines = ["[[listen]]", f'uri = "{listen}"', "[upstream.disks]", f'uri = "{upstream}"', *more]
    config.write_text("\n".join(lines) + "\n")
    return via._ready(listen, via._serve("--config", str(config))).uri()


@pytest.mark.parametrize("mode", ["", 'connections = "shared"', "connections = 4"])
def test_a_server_that_answers_before_the_data(
    mode: str, early: str, via: Gateways, workdir: Path
) -> None:
    uri = configured(via, workdir, early, mode)
    writes(uri)
    writes(uri, at=32 * MIB, errno="ENOSPC")
    qemu_io(uri, "write -P 7 0 8M", "read -P 7 0 8M", "flush")


POLICIES = {
    "read-only": "read-only = true",
    "protect": 'policies = [{ use = "protect", ranges = ["0-1048575"] }]',
}


@pytest.mark.parametrize("what", POLICIES.values(), ids=POLICIES)
def test_what_the_gateway_refuses_itself(what: str, via: Gateways, workdir: Path) -> None:
    export = ["[[export]]", 'name = ""', 'upstream = "disks"', what]
    writes(configured(via, workdir, "memory:64M", *export), errno="EPERM")
