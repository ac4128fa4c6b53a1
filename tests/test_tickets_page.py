"""What docs/tickets.md tells its reader to type, and programs to send, is done; its table has what is shown."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.admin.asking import ask
from gateway.cli import app, main
from tests.app.asking import asking

PAGE = (Path(__file__).parents[1] / "docs/tickets.md").read_text()
BLOCKS = "\n".join(re.findall(r"(?ms)^```\w*\n(.*?)^```", PAGE))
COMMANDS = re.findall(r"(?m)^(?:name=\$\()?nbd-gateway (.*?)\)?$", BLOCKS)
LINES = re.findall(r"(?m)^(\{.*\})$", BLOCKS)
CONFIG = '[upstream.disks]\nuri = "memory:1M"\n[tickets]\ndirectory = "DIR/t"\n'
CONTROL = '[control]\nsocket = "DIR/other"\n'
TCP = '[[listen]]\nuri = "nbd://127.0.0.1:0"\n'


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_can_be_meant(command: str) -> None:
    _function, _bound, rest = app.parse_args(shlex.split(command))
    assert not rest


@pytest.mark.real
async def test_commands_of_the_page_do_what_it_says(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking(workdir, TCP + CONFIG + CONTROL) as made:
        for command in COMMANDS:
            words = [*shlex.split(command), "--socket", str(made.path)]
            status = await trio.to_thread.run_sync(main, words)
            said = capsys.readouterr()
            assert status == 0, said.err
            if words[1] == "add":
                assert re.fullmatch(r"[\w-]+\n", said.out)
        tickets = made.gateway.service.tickets
        assert tickets is not None
        assert {each.name for each in tickets.after(None, 9)} > {"restore-7", "slow-7"}
        status = await trio.to_thread.run_sync(
            main, ["export", "add", "slow-7", "--upstream", "disks", "--socket", str(made.path)]
        )
        assert (status, capsys.readouterr().err) == (
            1,
            "nbd-gateway: there is a ticket 'slow-7' already\n",
        )


@pytest.mark.real
async def test_lines_of_the_page_do_what_it_says(workdir: Path) -> None:
    async with asking(workdir, TCP + CONFIG + CONTROL) as made:
        shown: dict[str, Any] = {}
        for said in map(json.loads, LINES):
            answer = await ask(made.path, said.pop("verb"), said)
            assert answer.ok, answer
            if answer.data is not None:
                shown = answer.data.get("ticket") or answer.data["tickets"][0]
                assert shown["export"] == "t-1"
        [part] = re.findall(r"(?s)<!-- names: ticket -->\n(.*?)<!-- end -->", PAGE)
        rows = [line.split("|")[1].strip(" `") for line in part.splitlines()[2:]]
        assert rows == list(shown)


ODD = {
    "--who netwrk=10.0.0.0/8": 'did you mean "network"?',
    "--who network": "expected network=VALUE",
    "--who tls=perhaps": "expected tls, tls=true or tls=false",
    "--policy limit": "--policy: expected TOML, got 'limit'",
    "--policy '{ use = 2026-12-24 }'": "--policy: expected TOML",
    "--for 5 --until 2036-01-01T00:00Z": "not both",
}


@pytest.mark.parametrize("odd", ODD)
def test_what_makes_no_sense(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "add", "--upstream", "u", *shlex.split(odd)]) == 2
    assert ODD[odd] in capsys.readouterr().err


def test_there_are_commands_and_lines() -> None:
    assert len(COMMANDS) >= 8
    assert len(LINES) >= 4
