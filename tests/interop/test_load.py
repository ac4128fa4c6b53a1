"""Many requests at once, with every byte checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from .clients import script, start_script
from .conftest import Image
from .gateways import Gateways
from .processes import run
from .servers import Servers, Upstream

MIB = 1 << 20


CLUSTER_BYTES = 64 << 10
"""Of qcow2. qemu-nbd 7.2 loses a write that is under way together with a TRIM of another part of its cluster:
3 of 45 runs without the gateway."""


def test_all_commands_at_depth_64(upstream: Upstream, via: Gateways) -> None:
    words = ["--plain"] if upstream.plain_only else []
    if upstream.kind == "qemu-qcow2":
        words += ["--cluster", str(CLUSTER_BYTES)]
    report = script("depth", via(upstream), *words)
    assert sum(report["done"].values()) == 2500
    if upstream.plain_only:
        return
    wanted = {"read", "write", "flush", "trim", "zero"}
    wanted |= {"cache"} if upstream.kind != "nbd-server" else set()
    wanted |= {"status"} if upstream.structured else set()
    assert set(report["commands"]) == wanted


@pytest.mark.parametrize("kind", ["qemu-raw", "nbdkit"])
def test_a_client_without_structured_replies(
    kind: str, servers: Servers, via: Gateways, image: Image
) -> None:
    upstream = servers.start(kind, image.path)
    report = script("depth", via(upstream), "--simple")
    assert sum(report["done"].values()) == 2500


def test_sixteen_clients_on_one_gateway(servers: Servers, via: Gateways, image: Image) -> None:
    """Each on its own part of one disk, and each of them right."""
    uri = via(servers.start("qemu-raw", image.path))
    clients = [
        start_script(
            *("depth", uri, "--operations", 400, "--seed", n),
            *("--from", n * 4 * MIB, "--length", 4 * MIB),
        )
        for n in range(16)
    ]
    for client in clients:
        assert client.wait() == 0, client.output


@pytest.mark.parametrize("kind", ["qemu-raw", "qemu-qcow2", "nbdkit", "nbdkit-no-sr", "nbd-server"])
def test_fio_verifies_what_it_wrote(
    kind: str, servers: Servers, via: Gateways, workdir: Path
) -> None:
    empty = workdir / "empty"
    with empty.open("wb") as file:
        file.truncate(256 * MIB)
    uri = via(servers.start(kind, empty))
    run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k"),
        *("--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1"),
        # Or it leaves a file of its own for each job where it was started.
        *("--verify_state_save=0", "--size=16m"),
        *("--offset_increment=64m", "--iodepth=32", "--numjobs=4"),
    )


def test_reads_and_writes_of_4_mib_in_flight_together(servers: Servers, via: Gateways) -> None:
    """The load that deadlocks a relay which does not read while it writes (libnbd aio-parallel)."""
    upstream = servers.nbdkit("-t", "1", "memory", "256M")
    report = script("parallel", via(upstream))
    assert report["answered"] == report["issued"] > 64
