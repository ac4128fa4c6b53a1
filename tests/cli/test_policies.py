"""nbd-gateway policies, and the page that it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.access.loading import catalogue
from gateway.cli import main
from gateway.cli.policies import page

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
Capture = pytest.CaptureFixture[str]


def test_the_page_is_what_is_printed() -> None:
    assert PAGE.read_text() == page(), "run: nbd-gateway policies --markdown > docs/policies.md"


@pytest.mark.parametrize("arguments", [[], ["--markdown"], ["--json"]])
def test_every_policy_is_there(arguments: list[str], capsys: Capture) -> None:
    assert main(["policies", *arguments]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in catalogue().names())


def test_the_page_of_one(capsys: Capture) -> None:
    assert main(["policies", "error"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("error: Fail commands on purpose, to test how a client takes it.\n\n")
    assert 'policies = [ { use = "error", ' in said
    assert "after-seconds" in said
    assert "hooks: join, hooked, each, flush" in said
    assert "READ, WRITE, FLUSH" in said


def test_one_that_costs_nothing(capsys: Capture) -> None:
    assert main(["policies", "readonly"]) == 0
    said = capsys.readouterr().out
    assert "what it slows: nothing" in said
    assert "option" not in said


def test_json_of_one(capsys: Capture) -> None:
    assert main(["policies", "delay", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["package"]) == ("delay", "policies")
    assert {"read", "write", "block-status", "open"} <= {each["name"] for each in told["options"]}
    assert told["hooks"] == ["prepare", "hooked", "each", "zero", "flush"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["readnoly"], 1, 'no policy is named "readnoly", did you mean "readonly"?'),
        (["--json", "--markdown"], 2, "expected --json or --markdown, got both"),
        (["error", "--markdown"], 2, '--markdown prints all policies of the gateway; got "error"'),
    ],
)
def test_mistakes(arguments: list[str], status: int, said: str, capsys: Capture) -> None:
    assert main(["policies", *arguments]) == status
    assert capsys.readouterr().err.startswith(f"nbd-gateway: {said}")
