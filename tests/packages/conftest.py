"""What takes minutes to make is made once, and a test may wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .images import BUILD_SECONDS, image_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(2 * BUILD_SECONDS))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image, by the name that buildah has for it."""
    with image_of(tmp_path_factory.mktemp("context")) as image:
        yield image
