"""Names that a configuration may use, from the packages that define them, for `gateway.config` imports none of
them.
"""

from collections.abc import Iterable

from gateway.access.named import hooks_of, mistakes_of, policy_named, remembers_of
from gateway.config import Vocabulary


def vocabulary() -> Vocabulary:
    """Give the names. Nothing is imported for them until a configuration names something."""
    return Vocabulary(_quirks, _personalities, policy_named, hooks_of, mistakes_of, remembers_of)


def _quirks() -> Iterable[str]:
    from gateway.quirks import catalogue

    return catalogue()


def _personalities() -> Iterable[str]:
    from gateway.embedded import PERSONALITIES

    return PERSONALITIES
