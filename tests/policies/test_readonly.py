from gateway.policy import Flag
from policies.readonly import Readonly
from tests.policies.harness import view


def test_the_client_is_told() -> None:
    seen = view()
    assert Readonly().describe(seen) == seen.having(Flag.READ_ONLY)


def test_it_costs_no_command_anything() -> None:
    assert not Readonly().hooked(view())
