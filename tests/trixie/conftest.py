"""The fixtures of tests/interop, with servers of the Debian 13 root beside those of the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import Image
from tests.interop.conftest import dirty as dirty
from tests.interop.conftest import image as image
from tests.interop.conftest import nothing_stays_behind as nothing_stays_behind
from tests.interop.conftest import peers as peers
from tests.interop.conftest import servers as servers
from tests.interop.conftest import via as via
from tests.interop.gateways import Gateways
from tests.interop.servers import Servers, Upstream

from . import root

Reach = Callable[[Upstream], str]

# name: (is it one of the root?, what Servers calls it)
SERVERS = {
    "qemu-10": (True, "qemu-raw"),
    "qemu-10-qcow2": (True, "qemu-qcow2"),
    "qemu-7.2": (False, "qemu-raw"),
    "nbdkit-1.42": (True, "nbdkit"),
    "nbdkit-1.32": (False, "nbdkit"),
    "nbd-server-3.26": (True, "nbd-server"),
    "nbd-server-3.24": (False, "nbd-server"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session", autouse=True)
def debian_13() -> Path:
    """Where the root is. Without it nothing here can be tested, and the run says how to make it."""
    if lacking := root.missing():
        pytest.exit(lacking, returncode=1)
    return root.directory()


@pytest.fixture
def workdir(debian_13: Path) -> Iterator[Path]:
    """A directory that the root's programs see, too."""
    with tempfile.TemporaryDirectory(prefix="nbd-", dir=debian_13 / "tmp") as name:
        yield Path(name)


@pytest.fixture
def new_servers(workdir: Path) -> Iterator[Servers]:
    """The root's."""
    ours = workdir / "new"
    ours.mkdir()
    servers = Servers(ours, root.PREFIX)
    try:
        yield servers
    finally:
        servers.stop()


@pytest.fixture(params=["direct", "gateway"])
def reach(request: pytest.FixtureRequest, new_servers: Servers, via: Gateways) -> Reach:
    """Both ways to a server: none between, which shows that the test is right, and the tested one."""
    return via if request.param == "gateway" else lambda upstream: upstream.uri


@pytest.fixture
def start(servers: Servers, new_servers: Servers) -> Callable[[str, Path], Upstream]:
    """Start any of SERVERS with a copy of a disk."""

    def begin(name: str, disk: Path) -> Upstream:
        new, kind = SERVERS[name]
        upstream = (new_servers if new else servers).start(kind, disk)
        upstream.kind = name
        return upstream

    return begin


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each of SERVERS in turn."""
    name: str = request.param
    return name


@pytest.fixture
def upstream(kind: str, start: Callable[[str, Path], Upstream], image: Image) -> Upstream:
    """Each of SERVERS in turn, serving a copy of `image`."""
    return start(kind, image.path)
