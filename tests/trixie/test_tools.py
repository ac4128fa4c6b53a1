"""Debian 13's tools on every server, and Debian 12's tools on qemu-nbd 10."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop import clients
from tests.interop.conftest import Image, sha256
from tests.interop.gateways import Gateways
from tests.interop.processes import attempt, run, wait_until
from tests.interop.servers import Upstream

from .conftest import Reach
from .root import new, script

MIB, GIB = 1 << 20, 1 << 30

PATTERNS = [
    "write -P 0xab 1M 3M",
    "write -P 0xcd 2M 4k",
    "write -z 2052k 1M",
    "write -z -u 3080k 8k",
    "write -f -P 0x5a 3M 64k",
    "read -P 0xab 1M 1M",
    "read -P 0xcd 2M 4k",
    "read -P 0 2052k 1020k",
    "read -P 0x5a 3M 8k",
    "flush",
    "discard 8M 4M",
    "write -P 0xee 8M 4M",
    "aio_write -P 1 16M 1M",
    "aio_write -P 2 17M 1M",
    "aio_write -P 3 18M 1M",
    "aio_flush",
    "read -P 1 16M 1M",
    "read -P 2 17M 1M",
    "read -P 3 18M 1M",
]


def qemu_io(uri: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    out = run(*new("qemu-io", "-f", "raw", *words, uri))
    assert "Pattern verification failed" not in out, out


def contents(upstream: Upstream, workdir: Path) -> str:
    """The checksum of the server's disk, read by Debian 12's nbdcopy, without the gateway."""
    copy = workdir / "contents"
    clients.nbdcopy(upstream.uri, copy)
    checksum = sha256(copy)
    copy.unlink()
    return checksum


def patterned(path: Path, image: Image) -> str:
    """The checksum of a copy of `image` on which Debian 12's qemu-io has done PATTERNS, without NBD."""
    run("cp", "--sparse=always", image.path, path)
    words = [word for command in PATTERNS for word in ("-c", command)]
    run("qemu-io", "-f", "raw", *words, path)
    return sha256(path)


def test_qemu_img_converts_from_it(
    upstream: Upstream, reach: Reach, image: Image, workdir: Path
) -> None:
    uri, copy = reach(upstream), workdir / "copy"
    run(*new("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy))
    assert sha256(copy) == image.sha256
    assert "identical" in run(*new("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, copy))


def test_qemu_img_converts_onto_a_dirty_disk(
    *,
    kind: str,
    start: Callable[[str, Path], Upstream],
    reach: Reach,
    image: Image,
    dirty: Path,
    workdir: Path,
) -> None:
    upstream, source = start(kind, dirty), workdir / "source"
    run("cp", "--sparse=always", image.path, source)
    run(*new("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, reach(upstream)))
    assert contents(upstream, workdir) == image.sha256


def test_nbdcopy_there_and_back(
    *,
    kind: str,
    start: Callable[[str, Path], Upstream],
    reach: Reach,
    image: Image,
    dirty: Path,
    workdir: Path,
) -> None:
    upstream, source, copy = start(kind, dirty), workdir / "source", workdir / "copy"
    run("cp", "--sparse=always", image.path, source)
    uri = reach(upstream)
    run(*new("nbdcopy", "--flush", source, uri))
    run(*new("nbdcopy", uri, copy))
    assert sha256(copy) == contents(upstream, workdir) == image.sha256


def test_qemu_io_patterns(upstream: Upstream, reach: Reach, image: Image, workdir: Path) -> None:
    qemu_io(reach(upstream), *PATTERNS)
    assert contents(upstream, workdir) == patterned(workdir / "model", image)


@pytest.mark.parametrize("kind", ["qemu-10", "qemu-10-qcow2", "nbdkit-1.32", "qemu-7.2"])
def test_qemu_io_zeroes_and_discards_two_gibibytes(
    kind: str, start: Callable[[str, Path], Upstream], reach: Reach, workdir: Path
) -> None:
    """The longest that qemu-io takes is a sector less than 2 GiB."""
    disk = workdir / "disk"
    with disk.open("wb") as file:
        file.truncate(8 * GIB)
    longest = 2 * GIB - 512
    qemu_io(
        reach(start(kind, disk)),
        *("write -P 1 0 64k", "write -P 2 3G 64k", "write -P 3 4194272k 64k"),
        *("write -P 4 5G 64k", "write -P 5 7G 64k"),
        *(f"write -z -u 3G {longest}", f"discard 5G {longest}"),
        *("read -P 1 0 64k", "read -P 0 3G 64k", "read -P 0 4194272k 64k", "read -P 5 7G 64k"),
        # What a discard leaves is not said, so it is written again.
        *("write -P 6 5G 64k", "read -P 6 5G 64k"),
    )


def test_nbdinfo_map_is_the_direct_one(upstream: Upstream, via: Gateways) -> None:
    uri = via(upstream)
    direct = attempt(*new("nbdinfo", "--map", upstream.uri))
    through = attempt(*new("nbdinfo", "--map", uri))
    assert (through.status, through.out) == (direct.status, direct.out)
    # A server without block status: no context is offered, and nothing is made up.
    assert (direct.status == 0) == upstream.structured, str(direct)


def test_nbdinfo_is_told_of_extended_headers(upstream: Upstream, reach: Reach) -> None:
    uri = reach(upstream)
    told = json.loads(run(*new("nbdinfo", "--json", uri)))
    ours = uri != upstream.uri
    [export] = told["exports"]
    assert told["extended"] == (ours or upstream.kind.startswith("qemu-10"))
    assert ("contexts" in export) == upstream.structured
    if upstream.structured:
        assert export["can_block_status_payload"] == told["extended"]


@pytest.mark.parametrize("kind", ["qemu-10", "qemu-10-qcow2"])
class TestDebian12:
    """Its clients on qemu-nbd 10: they ask for structured replies only."""

    def test_nbdinfo_map_is_the_direct_one(self, upstream: Upstream, via: Gateways) -> None:
        uri = via(upstream)
        assert run("nbdinfo", "--map", uri) == run("nbdinfo", "--map", upstream.uri)

    def test_both_nbdinfo_see_the_same_map(self, upstream: Upstream, via: Gateways) -> None:
        uri = via(upstream)
        assert run("nbdinfo", "--map", uri) == run(*new("nbdinfo", "--map", uri))

    def test_qemu_img_there_and_back(
        self,
        *,
        kind: str,
        start: Callable[[str, Path], Upstream],
        reach: Reach,
        image: Image,
        dirty: Path,
        workdir: Path,
    ) -> None:
        upstream, copy = start(kind, dirty), workdir / "copy"
        uri = reach(upstream)
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image.path, uri)
        assert contents(upstream, workdir) == image.sha256
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy)
        assert sha256(copy) == image.sha256

    def test_qemu_io_patterns(
        self, upstream: Upstream, reach: Reach, image: Image, workdir: Path
    ) -> None:
        clients.qemu_io(reach(upstream), *PATTERNS)
        assert contents(upstream, workdir) == patterned(workdir / "model", image)


@pytest.mark.parametrize("kind", ["qemu-10"])
@pytest.mark.parametrize("extended", [True, False])
def test_qemu_nbd_is_left_in_good_order(extended: bool, upstream: Upstream, reach: Reach) -> None:
    """It complains of a connection that does not end with DISC as that connection frames it."""
    uri = reach(upstream)
    script("leave", uri, extended)
    # Asks with INFO first.
    run(*new("nbdinfo", uri))
    wait_until(lambda: not connections(upstream), "qemu-nbd has seen the last of us")
    assert "Disconnect client" not in upstream.process.output


def connections(upstream: Upstream) -> int:
    """How many the server has at its Unix socket, from the kernel's table."""
    path = upstream.uri.partition("socket=")[2]
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()]
    # All that were accepted have the name of the one that listens.
    return sum(row[7:] == [path] for row in rows) - 1
