"""Fixtures for every test: nothing here knows NBD."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# They need other Debians beside this machine's own system: `make test-trixie`, `make test-packages`.
collect_ignore = ["trixie", "packages"]

WHOLE_GATEWAYS = {"hub", "links", "losses", "sessions"}
"""Rooms whose tests run whole gateways, over real sockets, or very many schedules."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        if room in WHOLE_GATEWAYS and not item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.real)


# A shell's background job is started with SIGINT ignored, and so would be all that it starts. This run may be
# one, and its tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def workdir() -> Iterator[Path]:
    """A short-named directory, gone after the test.

    Not tmp_path: its names are too long for a Unix socket's 107 bytes, and it keeps the files of
    three runs, which for disk images is a lot.
    """
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        yield Path(name)
