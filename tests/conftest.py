"""Fixtures for every test: nothing here knows NBD."""

from __future__ import annotations

import gc
import re
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
# A bare pytest tries fewer by chance, and other ones each time; CI has as many as hypothesis would take.
hypothesis.settings.register_profile(
    "quick", hypothesis.settings.get_profile("patient"), max_examples=25
)

# They need other Debians beside this machine's own system: `make test-trixie`, `make test-packages`.
collect_ignore = ["trixie", "packages"]

QUICK = "not real and not exhaustive"
"""What a bare pytest selects: the -m of pyproject.toml."""

WHOLE_GATEWAYS = {"hub", "interop", "links", "losses", "sessions"}
"""Rooms whose tests start programs, run whole gateways, over real sockets, or very many schedules."""

ALL_REAL = re.compile(r"^pytestmark = pytest\.mark\.real$", re.MULTILINE)
"""A file that says so of all its tests."""


def is_real(path: Path) -> bool:
    """Say whether nothing in a test file is quick, without importing it."""
    room = path.relative_to(Path(__file__).parent).parts[0]
    return room in WHOLE_GATEWAYS or ALL_REAL.search(path.read_text()) is not None


def pytest_configure(config: pytest.Config) -> None:
    quick = config.option.markexpr == QUICK
    hypothesis.settings.load_profile("quick" if quick else "patient")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out unread what a bare pytest would deselect as a whole: half of the files, and more than half of
    what it takes to import all.
    """
    quick = config.option.markexpr == QUICK
    is_test = collection_path.match("test_*.py")
    return True if quick and is_test and is_real(collection_path) else None


# What is loaded stays until the end. So nobody looks for garbage in it, neither while it is loaded nor for each
# `gc.collect()` of a test.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.freeze()
    gc.enable()


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
