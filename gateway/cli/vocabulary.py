"""Names that a configuration may use, from the packages that define them, for `gateway.config` imports none of
them.
"""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from gateway.config import Vocabulary

if TYPE_CHECKING:
    from pydantic import BaseModel


def vocabulary() -> Vocabulary:
    """Give the names. Nothing is imported for them until a configuration names something."""
    return Vocabulary(_quirks, _personalities, _policy, _hooks, _mistakes)


def _quirks() -> Iterable[str]:
    from gateway.quirks import catalogue

    return catalogue()


def _personalities() -> Iterable[str]:
    from gateway.embedded import PERSONALITIES

    return PERSONALITIES


def _policy(name: str) -> "type[BaseModel]":
    from gateway.access.loading import PolicyError, catalogue

    try:
        return catalogue().find(name)
    except PolicyError as error:
        raise LookupError(str(error)) from None


def _hooks(policy: "type[BaseModel]") -> Collection[str]:
    from gateway.access.loading import HOOKS

    return [name for name, hook in HOOKS.items() if getattr(policy, name) is not hook]


def _mistakes(policy: "BaseModel", exports: Collection[str]) -> Iterable[str]:
    from gateway.policy import Policy

    assert isinstance(policy, Policy)
    return policy.mistakes(exports)
