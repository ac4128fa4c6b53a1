"""Whole disks, there and back, by the tools that people copy disks with."""

from __future__ import annotations

from pathlib import Path

import pytest

from .clients import nbdcopy, qemu_io
from .conftest import Image, make_image, sha256
from .gateways import Gateways
from .processes import run
from .servers import KINDS, Servers, Upstream

# All of KINDS that can be written with more than WRITE (Upstream.plain_only).
WRITABLE = [kind for kind in KINDS if kind != "nbdkit-oldstyle"]
writable = pytest.mark.parametrize("kind", WRITABLE)


def contents(upstream: Upstream, workdir: Path) -> str:
    """The checksum of the server's disk, read without the gateway."""
    copy = workdir / "contents"
    nbdcopy(upstream.uri, copy)
    checksum = sha256(copy)
    copy.unlink()
    return checksum


def test_nbdcopy_reads(upstream: Upstream, via: Gateways, image: Image, workdir: Path) -> None:
    copy = workdir / "copy"
    nbdcopy(via(upstream), copy)
    assert sha256(copy) == image.sha256


@writable
def test_nbdcopy_writes_onto_a_dirty_disk(
    kind: str, servers: Servers, via: Gateways, image: Image, dirty: Path, workdir: Path
) -> None:
    upstream = servers.start(kind, dirty)
    nbdcopy(image.path, via(upstream), "--flush")
    assert contents(upstream, workdir) == image.sha256


def test_qemu_img_converts_from_it(
    upstream: Upstream, via: Gateways, image: Image, workdir: Path
) -> None:
    uri, copy = via(upstream), workdir / "copy"
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy)
    assert sha256(copy) == image.sha256
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, copy)


@writable
def test_qemu_img_converts_onto_a_dirty_disk(
    kind: str, servers: Servers, via: Gateways, image: Image, dirty: Path, workdir: Path
) -> None:
    upstream = servers.start(kind, dirty)
    uri = via(upstream)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image.path, uri)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image.path, uri)
    assert contents(upstream, workdir) == image.sha256


def test_qemu_io_writes_to_an_oldstyle_server(
    servers: Servers, via: Gateways, image: Image
) -> None:
    """Without FUA or FLUSH, which this one refuses."""
    uri = via(servers.start("nbdkit-oldstyle", image.path))
    run("qemu-io", "-t", "unsafe", "-f", "raw", "-c", "write -P 0xab 1M 3M", uri)
    qemu_io(uri, "read -P 0xab 1M 3M")


@writable
def test_qemu_io_patterns(kind: str, servers: Servers, via: Gateways, image: Image) -> None:
    upstream = servers.start(kind, image.path)
    uri = via(upstream)
    qemu_io(
        uri,
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
        "aio_write -P 1 16M 1M",
        "aio_write -P 2 17M 1M",
        "aio_write -P 3 18M 1M",
        "aio_flush",
        "read -P 1 16M 1M",
        "read -P 2 17M 1M",
        "read -P 3 18M 1M",
    )
    # And it is on the server's disk.
    qemu_io(upstream.uri, "read -P 0xcd 2M 4k", "read -P 0 2052k 1020k", "read -P 3 18M 1M")


LARGE = 640 << 20
"""Its holes are longer than the 64 MiB that nbd-server zeroes of one command (Q-N1)."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["qemu-raw", "nbdkit", "nbd-server"])
def test_a_large_disk(kind: str, servers: Servers, via: Gateways, workdir: Path) -> None:
    """Data, long holes, and both tools in both directions."""
    image = make_image(workdir / "big", LARGE, seed=7)
    upstream = servers.start(kind, image.path)
    uri, copy = via(upstream), workdir / "copy"

    nbdcopy(uri, copy)
    assert sha256(copy) == image.sha256
    copy.unlink()
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy)
    assert sha256(copy) == image.sha256

    # Onto a disk with something else on it.
    other = make_image(workdir / "other", LARGE, seed=8)
    nbdcopy(other.path, uri, "--flush")
    assert "identical" in run(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", other.path, upstream.uri
    )
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image.path, uri)
    assert "identical" in run(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", image.path, upstream.uri
    )
