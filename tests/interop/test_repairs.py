"""Old servers' oddities, mended, as libnbd and its tools see it. The server is an embedded one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .clients import nbdinfo, nbdsh
from .gateways import MODE, Gateways
from .processes import Process, listening, wait_until
from .servers import Upstream, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="nobody else makes these repairs")


@pytest.fixture
def old_qemu(workdir: Path) -> Iterator[Upstream]:
    """A server that behaves as qemu 3.0.0 does, writable, with a dirty bitmap."""
    path = workdir / "qemu-3.0"
    process = Process(sys.executable, "-m", "gateway.embedded", "legacy:qemu-3.0", "--unix", path)
    uri = unix_uri(path)
    wait_until(lambda: listening(uri), "the server listens")
    yield Upstream("legacy", uri, process)
    process.stop()


def test_the_flags_are_what_they_mean(old_qemu: Upstream, via: Gateways) -> None:
    [direct] = nbdinfo(old_qemu.uri)["exports"]
    [through] = nbdinfo(via(old_qemu))["exports"]
    assert (direct["can_multi_conn"], direct["can_cache"]) == (True, False)
    assert (through["can_multi_conn"], through["can_cache"]) == (False, True)


def test_cache_succeeds_and_the_connection_lives(old_qemu: Upstream, via: Gateways) -> None:
    uri = via(old_qemu)
    said = nbdsh(
        f"h.connect_uri({uri!r})\n"
        "h.cache(65536, 0)\nh.pwrite(b'x' * 512, 0)\nh.cache(512, 0)\n"
        "print(h.pread(512, 0) == b'x' * 512)"
    )
    assert said == "True\n"


def test_a_list_without_a_query_has_the_bitmap(old_qemu: Upstream, via: Gateways) -> None:
    program = (
        "h.set_opt_mode(True)\nh.connect_uri({uri!r})\nseen = []\n"
        "h.opt_list_meta_context(seen.append)\nprint(*seen)\nh.opt_abort()"
    )
    assert nbdsh(program.format(uri=old_qemu.uri)) == "base:allocation\n"
    through = nbdsh(program.format(uri=via(old_qemu)))
    assert through == "base:allocation qemu:dirty-bitmap:bitmap0\n"
