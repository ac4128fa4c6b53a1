"""The log as the gateway writes it, in memory, by a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gateway.config import Log
from gateway.log import logger

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def said(capsys: Capture) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for line in lines:
        assert line.pop("timestamp")
    return lines


def test_without_standard_error_nothing_is_said_elsewhere(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", None)
        logger(Log()).info("listening")
    assert capsys.readouterr().out == ""
