"""The image of deploy/, built without a registry: by buildah in a chroot, on a base that debootstrap makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools.patience import HANG_SECONDS

from .roots import CACHE, TOP

USER = 65532
"""Whom it runs as, and who owns nothing in it."""

BASE = "localhost/nbd-gateway-base"
IMAGE = "localhost/nbd-gateway-trial"
ISOLATION = {"BUILDAH_ISOLATION": "chroot"}
CA = "/etc/ssl/certs/ca-certificates.crt"


BUILD_SECONDS = 8 * HANG_SECONDS
"""An image is built of packages that come from elsewhere, are unpacked, and in part compiled."""


def said_by(*command: str | Path, seconds: float = HANG_SECONDS, **environment: str) -> str:
    """Run a program of this machine, which has to succeed; give what it prints."""
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@contextmanager
def image_of(there: Path) -> Iterator[str]:
    """Build it, in a directory for what it is built of; give what buildah calls it, until it is removed."""
    clean = CACHE / "slim-trixie"
    said_by(TOP / "tests/tools/debian-root", "trixie", clean, seconds=BUILD_SECONDS)
    shutil.copytree(TOP / "deploy", there / "deploy")
    build = ("build", "--target", "sdist", "--directory", there / "dist")
    said_by(sys.executable, "-m", "hatchling", *build)
    container = said_by("buildah", "from", "scratch").strip()
    mount = Path(said_by("buildah", "mount", container).strip())
    said_by("cp", "--archive", f"{clean}/.", mount)
    said_by("buildah", "umount", container)
    said_by("buildah", "commit", "--quiet", container, BASE)
    said_by("buildah", "rm", container)
    # Whoever has an authority of his own between himself and the packages has it in this file.
    trusted = ("--volume", f"{CA}:/tmp/ca.crt:ro", "--build-arg", "PIP_CERT=/tmp/ca.crt")
    file = there / "deploy/container/Dockerfile"
    # An image of the OCI's has no health check.
    options = ("--format", "docker", "--network", "host", "--build-arg", f"BASE={BASE}", *trusted)
    what = ("--file", file, "--tag", IMAGE, there)
    said_by("buildah", "bud", *options, *what, seconds=BUILD_SECONDS, **ISOLATION)
    try:
        yield IMAGE
    finally:
        said_by("buildah", "rmi", IMAGE, BASE)
