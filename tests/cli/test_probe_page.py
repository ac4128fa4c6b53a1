"""docs/probe.md, and what other pages say of servers that can be asked, is true."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import gateway
from gateway.cli import main
from gateway.embedded import PERSONALITIES
from gateway.protocol.introduction import QUERY, answer

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "probe.md").read_text()
MIB = 1 << 20

Capture = pytest.CaptureFixture[str]


def keys(document: object) -> set[str]:
    """All keys of an object, wherever they stand."""
    if isinstance(document, list):
        return set().union(*map(keys, document))
    if not isinstance(document, dict):
        return set()
    return {*document}.union(*map(keys, document.values()))


@pytest.mark.parametrize("uri", ["legacy:qemu-3.0", "file:missing"])
def test_it_has_every_key(uri: str, capsys: Capture) -> None:
    main(["probe", uri, "--transmit", "--json"])
    for key in keys(json.loads(capsys.readouterr().out)):
        assert f"`{key}`" in PAGE


@pytest.mark.parametrize("verb", ["probe", "conform"])
def test_it_has_every_option(verb: str, capsys: Capture) -> None:
    main([verb, "--help"])
    for option in re.findall(r"--[a-z]+", capsys.readouterr().out):
        assert f"`{option}`" in PAGE or option == "--help"


def test_its_commands_that_need_no_server_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch.img").write_bytes(bytes(2 * MIB))
    found = re.findall(r"^nbd-gateway (.* (?:legacy|file):.*)$", PAGE, re.MULTILINE)
    assert [main(shlex.split(line)) for line in found] == [3, 0]  # qemu 3.0 puts data at risk


def test_every_server_to_imitate_is_named() -> None:
    configuration = (DOCS / "configuration.md").read_text()
    assert {*re.findall(r"^\| `legacy:([a-z0-9.+-]+)` \|", configuration, re.MULTILINE)} == {
        *PERSONALITIES
    }


def test_who_the_gateway_is_stands_there() -> None:
    assert f"`{QUERY}`" in PAGE
    behaviour = (DOCS / "behaviour.md").read_text()
    assert f"`{QUERY}`" in behaviour
    assert f"`{answer()}`" in behaviour, f"the version is {gateway.__version__}"
