"""nbd-gateway probe: servers old and new by their names, with no quirk but their own, and still there."""

from __future__ import annotations

import pytest

from tests.interop.clients import nbdinfo
from tests.interop.conftest import Image
from tests.interop.probing import MATRIX, probe
from tests.interop.servers import Servers, Upstream

PROGRAMS = {
    "qemu-10": ("qemu", ">=8.2"),
    "qemu-10-qcow2": ("qemu", ">=8.2"),
    "qemu-7.2": ("qemu", ">=7.1,<8.2"),
    "nbdkit-1.42": ("nbdkit", ">=1.12"),
    "nbdkit-1.32": ("nbdkit", ">=1.12"),
    "nbd-server-3.26": ("nbd-server", ">=3.25"),
    "nbd-server-3.24": ("nbd-server", ">=3.15,<3.25"),
}
QUIRKS = {"nbd-server-3.26": ["nbd-server-df"]}


def test_program_and_quirks(upstream: Upstream, image: Image, kind: str) -> None:
    status, found = probe(upstream.uri)
    assert status == 0
    [export] = found["exports"]
    assert (export["program"]["name"], export["program"]["versions"]) == PROGRAMS[kind]
    assert export["quirks"] == QUIRKS.get(kind, [])
    assert export["size"] == image.size
    assert nbdinfo(upstream.uri)["exports"]  # it serves on


@pytest.mark.parametrize("name", MATRIX)
def test_no_quirk_is_seen_where_there_is_none(
    new_servers: Servers, image: Image, name: str
) -> None:
    program, start = MATRIX[name]
    disk = new_servers.workdir / "disk"  # where its programs see it
    disk.write_bytes(image.path.read_bytes())
    _status, found = probe(start(new_servers, disk).uri)
    [export] = found["exports"]
    assert export["quirks"] == (["nbd-server-df"] if program == "nbd-server" else [])
    assert found["program"]["name"] == program
