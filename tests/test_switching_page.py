"""What docs/switching.md tells its reader to type, and programs to send, can be meant and is done."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from gateway.admin.asking import ask
from gateway.cli import app, with_command
from gateway.cli.pause import pause
from tests.app.asking import THROUGH, asking
from tests.app.houses import until

PAGE = (Path(__file__).parents[1] / "docs/switching.md").read_text()
BLOCKS = "\n".join(re.findall(r"(?ms)^```\w*\n(.*?)^```", PAGE))
COMMANDS = re.findall(r"(?m)^nbd-gateway (.*)$", BLOCKS)
LINES = re.findall(r"(?m)^(\{.*\})$", BLOCKS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_can_be_meant(command: str) -> None:
    arguments = with_command(shlex.split(command))
    function, _bound, rest = app.parse_args(arguments)
    assert function.__name__ == arguments[0]
    assert not rest


async def test_lines_of_the_page_do_what_it_says(workdir: Path) -> None:
    config = THROUGH.replace("[upstream.u]", "[upstream.disks]")
    async with asking(workdir, config) as made:
        said = [json.loads(line) for line in LINES]
        assert {each["verb"] for each in said} == {"pause", "resume", "switch", "losses"}
        for each in said:
            if "uri" in each:
                each["uri"] = f"nbd+unix:///?socket={workdir / 'h.sock'}"
            verb, arguments = each.pop("verb"), each
            answer = await ask(made.path, verb, arguments)
            assert answer.ok, answer
            if "while-connected" in arguments:
                await until(lambda: "disk" not in made.paused)


def test_there_are_commands_and_lines() -> None:
    assert len(COMMANDS) >= 10
    assert len(LINES) >= 6


def test_where_a_copy_shares_its_blocks_is_said() -> None:
    explained = PAGE.partition("`cp --reflink=always` copies")[2].partition("```")[0]
    for name in ("XFS", "Btrfs", "ext4", "tmpfs", "Operation not supported"):
        assert name in explained
    assert pause.__doc__ is not None
    assert "XFS and Btrfs" in pause.__doc__


def test_a_copy_that_cannot_share_blocks_fails_as_is_said() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # a tmpfs
        (Path(folder) / "disk").write_bytes(b"d")
        copied = subprocess.run(
            ["cp", "--reflink=always", f"{folder}/disk", f"{folder}/copy"],
            capture_output=True,
            text=True,
            env={"LC_ALL": "C", "PATH": "/bin:/usr/bin"},
            check=False,
        )
    assert copied.returncode == 1
    assert "Operation not supported" in copied.stderr
