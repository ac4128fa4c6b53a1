"""What `nbd-gateway reload` makes of a gateway's answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.admin.control import ControlAnswer, ControlSocket

CONFIG = """
[[listen]]
uri = "nbd://127.0.0.1:0"
[upstream.m]
uri = "memory:1M"
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("answer", "status", "out", "err"),
    [
        (
            ControlAnswer(True, ("exports: 1", "rules: 0")),
            0,
            "reloaded: exports: 1; rules: 0\n",
            "",
        ),
        (
            ControlAnswer(True, ("exports: 1",), ("a key stays as it was",)),
            1,
            "",
            "nbd-gateway: a key stays as it was\nnbd-gateway: all but that is taken up: exports: 1\n",
        ),
        (
            ControlAnswer(False, problems=("no room",)),
            1,
            "",
            "nbd-gateway: no room\nnbd-gateway: nothing has changed\n",
        ),
        (
            ControlAnswer(False, ("credentials exchanged: a",), ("no room",)),
            1,
            "",
            "nbd-gateway: no room\n"
            "nbd-gateway: the configuration stays as it was; credentials exchanged: a\n",
        ),
    ],
    ids=["all", "not all credentials", "nothing", "only credentials"],
)
async def test_words(
    tmp_path: Path, answer: ControlAnswer, status: int, out: str, err: str
) -> None:
    async def reload(_arguments: Mapping[str, Any]) -> ControlAnswer:
        return answer

    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG)
    control = ControlSocket(tmp_path / "c")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(control.run, {"reload": reload}, nursery, lambda _errno: None))
        done = await trio.run_process(
            [sys.executable, "-m", "gateway", "reload", config, "--socket", control.path],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        await control.aclose()
        nursery.cancel_scope.cancel()
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (status, out, err)
