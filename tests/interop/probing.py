"""How a server is probed, and which servers are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.tools.patience import HANG_SECONDS

from .processes import run
from .servers import Servers, Upstream


def probe(uri: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "probe", uri, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def _filtered(name: str, servers: Servers, disk: Path) -> Upstream:
    return servers.nbdkit(f"--filter={name}", "file", disk)


def _compressed(servers: Servers, disk: Path) -> Upstream:
    """A qcow2 image whose new clusters are compressed."""
    image = servers.workdir / "compressed.qcow2"
    run(*servers.prefix, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image)
    below = f"file.driver=qcow2,file.file.driver=file,file.file.filename={image}"
    return servers.qemu_nbd("--image-opts", f"driver=compress,{below}")


BLOCKS_OF_4K = "driver=blkdebug,align=4096,image.driver=file,image.filename="


MATRIX: dict[str, tuple[str, Callable[[Servers, Path], Upstream]]] = {
    "qemu": ("qemu", lambda s, disk: s.qemu_nbd("-f", "raw", disk)),
    "qemu, read-only": ("qemu", lambda s, disk: s.qemu_nbd("-r", "-f", "raw", disk)),
    "qemu, format guessed": ("qemu", lambda s, disk: s.qemu_nbd(disk)),
    "qemu, snapshot": ("qemu", lambda s, disk: s.qemu_nbd("--snapshot", "-f", "raw", disk)),
    "qemu, part": ("qemu", lambda s, disk: s.qemu_nbd("-o", "4096", "-f", "raw", disk)),
    "qemu, no cache": ("qemu", lambda s, disk: s.qemu_nbd("--cache=none", "-f", "raw", disk)),
    "qemu, 4K": (
        "qemu",
        lambda s, disk: s.qemu_nbd("--image-opts", f"{BLOCKS_OF_4K}{disk}"),
    ),
    "qemu, 4K, read-only": (
        "qemu",
        lambda s, disk: s.qemu_nbd("-r", "--image-opts", f"{BLOCKS_OF_4K}{disk}"),
    ),
    "qemu, qcow2": ("qemu", lambda s, disk: s.start("qemu-qcow2", disk)),
    "qemu, qcow2, compressed": ("qemu", lambda s, disk: _compressed(s, disk)),
    "qemu, storage daemon": ("qemu", lambda s, disk: s.start("storage-daemon", disk)),
    "nbdkit": ("nbdkit", lambda s, disk: s.nbdkit("file", disk)),
    "nbdkit, no cache": ("nbdkit", lambda s, disk: s.nbdkit("file", disk, "cache=none")),
    "nbdkit, read-only": ("nbdkit", lambda s, disk: s.nbdkit("-r", "file", disk)),
    "nbdkit, data": ("nbdkit", lambda s, _disk: s.nbdkit("data", "1 2 3")),
    "nbdkit, pattern": ("nbdkit", lambda s, _disk: s.nbdkit("pattern", "1M")),
    "nbdkit, null": ("nbdkit", lambda s, _disk: s.nbdkit("null", "1M")),
    "nbdkit, memory": ("nbdkit", lambda s, _disk: s.nbdkit("memory", "1M")),
    "nbdkit, split": ("nbdkit", lambda s, disk: s.nbdkit("split", disk, disk)),
    **{
        f"nbdkit, {name}": (
            "nbdkit",
            partial(_filtered, name),
        )
        for name in ("cow", "cache", "nocache", "noextents", "nozero")
    },
    "nbd-server": ("nbd-server", lambda s, disk: s.nbd_server(disk)),
}
"""What servers are, and how each is started; none has a quirk that is known."""
