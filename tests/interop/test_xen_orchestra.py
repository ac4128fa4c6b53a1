"""Xen Orchestra's NBD client, an implementation of its own: EXPORT_NAME alone, simple replies, eight links."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Image, make_image, sha256
from .gateways import MODE, Gateways
from .processes import Process, listening, run
from .servers import Servers, free_port

XO = Path(__file__).parent / "xo"
MIB = 1024 * 1024
ODD_BYTES = 9 * MIB + 777


tcp_alone = pytest.mark.skipif(
    MODE == "direct", reason="its client speaks TCP alone, and these servers listen elsewhere"
)


def read(port: int, export: str, connections: int, *more: str | Path) -> dict[str, Any]:
    """What xo/read.mjs says."""
    program = XO / "read.mjs"
    said = run("node", program, str(port), export, str(connections), *more)
    told: dict[str, Any] = json.loads(said)
    return told


def port_of(uri: str) -> int:
    return int(uri.rpartition(":")[2].partition("/")[0])


@tcp_alone
@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("server", ["qemu-raw", "nbdkit", "nbd-server"])
def test_a_backup_reads_all_of_a_disk(
    servers: Servers, via: Gateways, image: Image, server: str, connections: int
) -> None:
    started = servers.nbdkit if server == "nbdkit" else servers.start
    upstream = started("file" if server == "nbdkit" else server, image.path)
    gateway = via.before(upstream, tcp=True)
    export = upstream.uri.partition("?")[0].rpartition("/")[2]
    told = read(port_of(gateway.base), export, connections)
    assert (told["size"], told["sha256"]) == (image.size, image.sha256)
    if server == "nbd-server":
        assert told["map"] is None  # that has none
    else:
        assert told["map"] == json.loads(run("nbdinfo", "--map", "--json", upstream.uri))


@tcp_alone
def test_the_last_block_is_not_whole(servers: Servers, via: Gateways, workdir: Path) -> None:
    disk = make_image(workdir / "odd", ODD_BYTES)
    gateway = via.before(servers.nbdkit("file", disk.path), tcp=True)
    told = read(port_of(gateway.base), "", 2)
    assert (told["size"], told["sha256"]) == (ODD_BYTES, sha256(disk.path))


@pytest.mark.skipif(MODE != "gateway", reason="only the gateway has TLS here")
def test_over_tls(servers: Servers, image: Image, workdir: Path) -> None:
    """It shows a certificate without a key, which is none, and looks at no name."""
    pki, port = workdir / "pki", free_port()
    run(sys.executable, "-m", "gateway", "pki", "init", pki)
    upstream, listen = servers.nbdkit("file", image.path), f"nbds://127.0.0.1:{port}"
    secure = ("--tls-certificates", pki, "--no-tls-verify-client")
    words = ("serve", upstream.uri, "--listen", listen, *map(str, secure))
    process = Process(sys.executable, "-m", "gateway", *words)
    try:
        process.ready_when(lambda: listening(f"nbd://127.0.0.1:{port}"), "the gateway listens")
        told = read(port, "", 2, pki / "ca-cert.pem")
        assert (told["size"], told["sha256"]) == (image.size, image.sha256)
    finally:
        process.stop()
