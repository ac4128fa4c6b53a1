import pytest
from pydantic import ValidationError

from gateway.policy import Denied
from policies.contexts import Contexts
from tests.policies.harness import configured, view

ALLOCATION, BITMAP, OTHER = "base:allocation", "qemu:dirty-bitmap:backup-1", "x-vendor:[a]"
ALL = frozenset({ALLOCATION, BITMAP, OTHER})


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, ALL),
        ({"allow": []}, set()),
        ({"allow": ["base:*"]}, {ALLOCATION}),
        ({"allow": ["BASE:*"]}, set()),
        ({"allow": ["base:allocation", "qemu:dirty-bitmap:backup-*"]}, {ALLOCATION, BITMAP}),
        ({"allow": ["qemu:dirty-bitmap:backup-?"]}, {BITMAP}),
        ({"allow": ["qemu:dirty-bitmap:backup-??"]}, set()),
        ({"deny": ["qemu:*"]}, {ALLOCATION, OTHER}),
        ({"allow": ["qemu:*"], "deny": ["*:backup-[0-9]"]}, set()),
        ({"allow": ["[xb]*"]}, {ALLOCATION, OTHER}),
        ({"deny": ["*:[[]a]"]}, {ALLOCATION, BITMAP}),
        ({"allow": ["base:allocation/"]}, set()),
    ],
)
def test_patterns(options: dict[str, object], allowed: set[str]) -> None:
    policy = configured(Contexts, options | {"denied": "omit"})
    assert policy.describe(view(contexts=ALL)) == view(contexts=frozenset(allowed))
    assert {name for name in ALL if policy.context(name)} == allowed
    assert not policy.hooked(view())


@pytest.mark.parametrize(
    ("options", "failing"),
    [
        ({}, {BITMAP, "qemu:allocation-depth", "qemu:"}),
        ({"denied": "omit"}, set()),
        ({"denied": "fail"}, {BITMAP, "qemu:allocation-depth", "qemu:", "qemu", ALLOCATION, OTHER}),
    ],
)
def test_denied(options: dict[str, object], failing: set[str]) -> None:
    policy = configured(Contexts, options | {"allow": []})
    for name in (BITMAP, "qemu:allocation-depth", "qemu:", "qemu", ALLOCATION, OTHER):
        if name in failing:
            with pytest.raises(Denied, match="is denied here") as caught:
                policy.context(name)
            assert name in str(caught.value)
        else:
            assert policy.context(name) is False


def test_an_allowed_context_is_never_refused() -> None:
    assert configured(Contexts, {"denied": "fail"}).context(BITMAP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denied": "drop"}, "'omit' or 'fail'"),
        ({"allow": "base:*"}, "allow"),
        ({"alow": []}, "alow"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(Contexts, options)
    assert message in str(caught.value)
