"""Real servers, the gateway, and disk images for the tests of this folder."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .gateways import Gateways
from .processes import Process, run
from .servers import KINDS, Servers, Upstream

# Its tests are taken in by test files.
pytest.register_assert_rewrite("tests.interop.seen")

MIB = 1 << 20
INSTALL_PEERS = Path(__file__).parents[1] / "tools" / "install-peers"


@pytest.fixture(scope="session", autouse=True)
def peers() -> None:
    """The programs themselves. One that is missing fails the run: skipping would prove nothing."""
    missing = run(INSTALL_PEERS, "--missing").split("\n")[:-1]
    needs = [
        f"{program} (Debian package {package})" for program, package in map(str.split, missing)
    ]
    if needs:
        pytest.exit(f"interoperability tests need {', '.join(needs)}", returncode=1)


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """Ends what a test has started and, failing halfway, not ended."""
    yield
    while Process.started:
        process = Process.started.pop()
        if process.running:
            process.kill()
            print(f"--- had to be killed: {' '.join(process.command)}\n{process.output}")


@dataclass(frozen=True)
class Image:
    path: Path
    size: int
    sha256: str


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_image(path: Path, size: int, seed: int = 0) -> Image:
    """A sparse raw disk: data, holes and written zeros, at edges that are not always round."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, size // 16):
            # Every other sixteenth stays a hole.
            if start // (size // 16) % 2:
                file.seek(start + rng.choice([0, 512, 4096, 65536]))
                file.write(rng.randbytes(rng.randrange(1, size // 64)))
        file.seek(size // 2)
        file.write(bytes(MIB))
        file.seek(size - 4096)
        file.write(rng.randbytes(4096))
    return Image(path, size, sha256(path))


def make_dirty(path: Path, size: int) -> Path:
    """A disk on which nothing is zero: what was not written to it is seen."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(b"\xff" * MIB)
    return path


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """64 MiB with data and holes. Read only: servers get copies."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        yield make_image(Path(name) / "image", 64 * MIB)


@pytest.fixture(scope="session")
def dirty() -> Iterator[Path]:
    """64 MiB of 0xff."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        yield make_dirty(Path(name) / "dirty", 64 * MIB)


@pytest.fixture
def servers(workdir: Path) -> Iterator[Servers]:
    servers = Servers(workdir)
    try:
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def via(servers: Servers, workdir: Path) -> Iterator[Gateways]:
    """`via(upstream)` is the way to an upstream that is tested. Ends before the servers do."""
    gateways = Gateways(workdir)
    yield gateways
    gateways.stop()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the real servers in turn."""
    name: str = request.param
    return name


@pytest.fixture
def upstream(kind: str, servers: Servers, image: Image) -> Upstream:
    """Each of the real servers in turn, serving a copy of `image`."""
    return servers.start(kind, image.path)
