"""What takes minutes to make is made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .images import image_of


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image, by the name that buildah has for it."""
    with image_of(tmp_path_factory.mktemp("context")) as image:
        yield image
