"""What several workers cannot do yet is refused, with what to write instead; with one, nothing is."""

from __future__ import annotations

import pickle

import pytest

from gateway.cli.vocabulary import vocabulary
from gateway.config import ConfigError, parse
from gateway.config.models import ROUTES_KEPT

HEAD = '[[listen]]\nuri = "nbd://127.0.0.1"\n'
SERVER = '[upstream.a]\nuri = "nbd://10.0.0.1"\n'
EXPORTS = '[[export]]\nname = "x"\nupstream = "a"\n[[export]]\nname = "y"\nupstream = "a"\n'

REFUSED = {
    "memory": '[upstream.a]\nuri = "memory:1M"\n',
    "file": '[upstream.a]\nuri = "file:x.img"\n',
    "legacy": '[upstream.a]\nuri = "legacy:qemu-3.0"\n',
    "tickets": f"{SERVER}[tickets]\n",
}
TAKEN = {
    "nothing else": SERVER,
    "HTTP": f"{SERVER}[admin]\n",
    "writers, by export": f'{SERVER}{EXPORTS}[[rule]]\npolicies = [ {{ use = "writers" }} ]\n',
    "a limit in a rule": f'{SERVER}{EXPORTS}[[rule]]\npolicies = [ {{ use = "limit", connections = 4 }} ]\n',
    "a limit of a pattern": f'{SERVER}[[export]]\nname = "v*"\nupstream = "a"\n'
    'policies = [ { use = "limit", connections-per-identity = 4 } ]\n',
    "a limit of an export": f'{SERVER}[[export]]\nname = "x"\nupstream = "a"\n'
    'policies = [ { use = "limit", connections = 4 } ]\n',
    "limits of a session": f'{SERVER}{EXPORTS}[[rule]]\npolicies = [ {{ use = "limit", in-flight = 4 }} ]\n',
    "an audit log": f'{SERVER}{EXPORTS}[[rule]]\npolicies = [ {{ use = "audit", file = "/a.log" }} ]\n',
    "a rate of identities": f"{SERVER}{EXPORTS}[[rule]]\n"
    'policies = [ { use = "rate", operations-per-second = 5, per = "identity" } ]\n',
    "a rate of an export": f"{SERVER}{EXPORTS}[[rule]]\n"
    'policies = [ { use = "rate", operations-per-second = 5, per = "export" } ]\n',
}


@pytest.mark.parametrize("workers", ["2", '"auto"'])
@pytest.mark.parametrize("row", REFUSED)
def test_refused(row: str, workers: str) -> None:
    text = HEAD + REFUSED[row]
    parse(f"workers = 1\n{text}", "f", vocabulary())
    with pytest.raises(ConfigError) as caught:
        parse(f"workers = {workers}\n{text}", "f", vocabulary())
    [problem] = caught.value.problems
    assert f"workers = {workers}" in problem.message
    assert "write workers = 1" in problem.message
    assert problem.line is not None


@pytest.mark.parametrize("row", TAKEN)
def test_taken(row: str) -> None:
    assert parse(f"workers = 2\n{HEAD}{TAKEN[row]}", "f", vocabulary()).workers == 2


@pytest.mark.parametrize("value", ["0", "65", "-1", "true", "1.5", '"two"'])
def test_what_it_may_be(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r'workers: expected a number from 1 to 64, or "auto", got'
    ):
        parse(f"workers = {value}\n{HEAD}{SERVER}", "f")


def test_one_that_was_asked_where_names_lead_goes_to_a_new_worker() -> None:
    config = parse(f'{HEAD}{SERVER}[[export]]\nname = "v*"\nupstream = "a"\n', "f", vocabulary())
    routes = [config.route(name) for name in ("v1", "w")]
    for number in range(ROUTES_KEPT):
        assert config.route(f"v{number}")
    there = pickle.loads(pickle.dumps(config))
    assert there == config
    assert [there.route(name) for name in ("v1", "w")] == routes
