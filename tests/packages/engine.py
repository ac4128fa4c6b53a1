"""Docker's daemon, in a network and with mounts of its own: what it changes of a machine's network it changes
there, and all its ports are free. It reaches nobody, so its images are put into it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.processes import Process, attempt
from tests.walkthrough import AS_TYPED, said_by

# An image's name in it, as the pages and compose.yaml have it.
NAMES = ("nbd-gateway:0.2.0", "nbd-gateway:latest")

BEGIN = """
ip link set lo up
echo '{}' >"$1/daemon.json"
exec dockerd --config-file "$1/daemon.json" --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" \
    --host "unix://$1/socket"
"""


@dataclass(frozen=True)
class Engine:
    """One that runs."""

    socket: Path
    pid: int

    def inside(self, *command: str) -> list[str]:
        """Give the command that runs another where the engine's ports are."""
        return ["nsenter", "--target", str(self.pid), "--net", "--", *command]

    def environment(self) -> dict[str, str]:
        path = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"]
        ours = {"PATH": os.pathsep.join(path), "DOCKER_HOST": f"unix://{self.socket}"}
        return {**os.environ, **AS_TYPED, **ours}

    def typed(self, script: str, there: Path) -> str:
        """Be who types a page."""
        environment = {**self.environment(), "HOME": str(there)}
        return said_by(self.inside("bash", "--norc", "-c", script), there, environment)


@contextmanager
def engine(there: Path, image: str) -> Iterator[Engine]:
    """Have one that knows the image, which buildah has by that name."""
    process = Process("unshare", "--mount", "--net", "sh", "-ec", BEGIN, "sh", there)
    try:
        socket = there / "socket"
        host = ("docker", "--host", f"unix://{socket}")
        process.ready_when(lambda: attempt(*host, "version").status == 0, "docker's daemon answers")
        for name in NAMES:
            archive = there / "image.tar"
            subprocess.run(
                ["buildah", "push", "--quiet", image, f"docker-archive:{archive}:{name}"],
                check=True,
            )
            subprocess.run([*host, "load", "--quiet", "--input", archive], check=True)
            archive.unlink()
        yield Engine(socket, process.pid)
    finally:
        status = process.stop()
        Process.started.remove(process)
        print(process.output)
        assert status == 0
