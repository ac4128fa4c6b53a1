"""Policies by their names, for whoever reads what users write: `gateway.config` imports none of them.

Nothing is imported for it until a policy is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from gateway.config import Vocabulary

if TYPE_CHECKING:
    from pydantic import BaseModel


def policy_named(name: str) -> type[BaseModel]:
    """Give the policy of a name. Raises LookupError."""
    from gateway.access.loading import PolicyError, catalogue

    try:
        return catalogue().find(name)
    except PolicyError as error:
        raise LookupError(str(error)) from None


def hooks_of(policy: type[BaseModel]) -> Collection[str]:
    """Give the names of the hooks that a policy has."""
    from gateway.access.loading import HOOKS

    return [name for name, hook in HOOKS.items() if getattr(policy, name) is not hook]


def mistakes_of(policy: BaseModel, exports: Collection[str]) -> Iterable[str]:
    """Say what is wrong with a policy where the exports have these names."""
    from gateway.policy import Policy

    assert isinstance(policy, Policy)
    return policy.mistakes(exports)


def remembers_of(policy: BaseModel) -> str:
    """Say of which sessions a policy knows something together."""
    from gateway.policy import Policy

    assert isinstance(policy, Policy)
    return policy.remembers()


POLICIES_ALONE = Vocabulary(tuple, tuple, policy_named, hooks_of, mistakes_of, remembers_of)
"""The names that may stand in a ticket."""
