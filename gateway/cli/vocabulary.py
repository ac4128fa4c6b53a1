"""Names that a configuration may use, from the packages that define them: `gateway.config` is a leaf."""

from collections.abc import Iterable

from gateway.config import Vocabulary


def vocabulary() -> Vocabulary:
    """Give what may be named. Nothing is imported for it until a configuration names something."""
    return Vocabulary(quirks=_quirks, personalities=_personalities)


def _quirks() -> Iterable[str]:
    from gateway.quirks import catalogue

    return catalogue()


def _personalities() -> Iterable[str]:
    from gateway.embedded import PERSONALITIES

    return PERSONALITIES
