"""libnbd 1.22 with extended headers: commands of more than 4 GiB, and the map of all of a huge disk."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from tests.interop.gateways import Gateways
from tests.interop.processes import run
from tests.interop.servers import Servers, Upstream

from .conftest import Reach
from .root import script

KIB, GIB = 1 << 10, 1 << 30
SIZE = 8 * GIB
# At both ends, on both sides of what is zeroed, in the middle of it and across the limit of 32 bits.
DATA = [0, GIB - 64 * KIB, GIB, 3 * GIB, 4 * GIB - 32 * KIB, 7 * GIB - 64 * KIB, 7 * GIB]
DATA += [SIZE - 64 * KIB]
ZERO = (GIB, 6 * GIB)
ALLOCATION, DEPTH = "base:allocation", "qemu:allocation-depth"
HOLE_AND_ZERO = 3


def is_zeroed(offset: int) -> bool:
    return ZERO[0] <= offset < sum(ZERO)


def model(*, written: int, never: int, zeroed: int) -> list[list[int]]:
    """The map once DATA is written and ZERO zeroed, in the flags that a context has for each."""
    rows: list[list[int]] = []
    edges = {0, SIZE, ZERO[0], sum(ZERO)}
    edges |= {edge for at in DATA if not is_zeroed(at) for edge in (at, at + 64 * KIB)}
    for start, end in itertools.pairwise(sorted(edges)):
        flags = zeroed if is_zeroed(start) else written if start in DATA else never
        if rows and rows[-1][2] == flags:
            rows[-1][1] += end - start
        else:
            rows.append([start, end - start, flags])
    return rows


ALLOCATION_MODEL = model(written=0, never=HOLE_AND_ZERO, zeroed=HOLE_AND_ZERO)
# qcow2 says which layer it is in: what was zeroed is as much in the first as what was written.
DEPTH_MODEL = model(written=1, never=0, zeroed=1)


def huge(uri: str, contexts: list[str], filters: list[list[str]]) -> dict[str, Any]:
    options = {"data": DATA, "zero": ZERO, "contexts": contexts, "filters": filters}
    report: dict[str, Any] = script("huge", uri, options)
    assert report["contents"] == ["zero" if is_zeroed(offset) else "data" for offset in DATA]
    return report


def qcow2(servers: Servers, workdir: Path) -> Upstream:
    disk = workdir / "huge.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", disk, str(SIZE))
    return servers.qemu_nbd("-f", "qcow2", "-A", disk)


@pytest.mark.parametrize("release", ["1.32", "1.42"])
def test_nbdkit(release: str, servers: Servers, new_servers: Servers, reach: Reach) -> None:
    """A server without extended headers: the gateway has them all the same."""
    upstream = (new_servers if release == "1.42" else servers).nbdkit("memory", str(SIZE))
    uri = reach(upstream)
    report = huge(uri, [ALLOCATION], [[ALLOCATION]])
    assert report["map"] == {ALLOCATION: ALLOCATION_MODEL}
    assert report["extended"] == report["filter"] == (uri != upstream.uri)
    assert report["filtered"] == [report["map"]] * report["filter"]


@pytest.mark.parametrize("release", ["7.2", "10"])
def test_qemu_nbd(
    release: str, servers: Servers, new_servers: Servers, reach: Reach, workdir: Path
) -> None:
    """Two contexts, and each of them alone. qemu-nbd 10 has extended headers, 7.2 has not."""
    upstream = qcow2(new_servers if release == "10" else servers, workdir)
    uri = reach(upstream)
    report = huge(uri, [ALLOCATION, DEPTH], [[DEPTH], [ALLOCATION], [ALLOCATION, DEPTH]])
    allocation, depth = report["map"][ALLOCATION], report["map"][DEPTH]
    assert (allocation, depth) == (ALLOCATION_MODEL, DEPTH_MODEL)
    assert report["extended"] == report["filter"] == (release == "10" or uri != upstream.uri)
    if report["filter"]:
        assert report["filtered"] == [{DEPTH: depth}, {ALLOCATION: allocation}, report["map"]]
    # 6 GiB of zeros are one extent, for those whose lengths have 64 bits on both sides.
    assert (report["longest_extent"] > 4 * GIB) == (release == "10")


@pytest.mark.parametrize("release", ["3.24", "3.26"])
def test_128_mib_of_zeros_before_nbd_server(
    release: str, servers: Servers, new_servers: Servers, via: Gateways, workdir: Path
) -> None:
    """It zeroes the first 64 MiB and says success."""
    disk = workdir / "zeroes.img"
    disk.touch()
    os.truncate(disk, 160 << 20)
    upstream = (new_servers if release == "3.26" else servers).nbd_server(disk)
    report = script("zero", via(upstream), 128 << 20)
    assert report == {"extended": True, "not_zeroed": [], "behind": True}
