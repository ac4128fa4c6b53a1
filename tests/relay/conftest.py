"""What stands right here are whole gateways, over real sockets; `scan` and `bundle` below are pure."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and not item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.real)
