"""What clients will need and is not there is said before they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from gateway.app.lacking import say_what_is_lacking
from gateway.config import parse
from policies.audit import Audit

from .houses import EXPORT, LISTEN, MEMORY, house

AUDIT = 'policies = [ { use = "audit", file = "missing/audit.log" } ]\n'
RULES = f'[[rule]]\nexports = "*"\n{AUDIT}' * 2
COMMAND = '[upstream.c]\ncommand = ["no-such-program"]\n'

WANTS = "audit: there is no directory missing"


async def said(text: str) -> list[str]:
    with structlog.testing.capture_logs() as lines:
        await say_what_is_lacking(parse(text, "f"), structlog.get_logger())
    assert all(line["log_level"] == "warning" for line in lines)
    return [line["what"] for line in lines]


async def test_each_thing_is_said_once() -> None:
    assert await said(LISTEN + MEMORY + COMMAND + EXPORT + AUDIT + RULES) == [
        "there is no program 'no-such-program'",
        WANTS,
    ]


async def test_nothing_is_said_where_all_is_there() -> None:
    assert await said(LISTEN + MEMORY) == []
    assert await said(LISTEN + MEMORY + EXPORT + AUDIT.replace("missing", ".")) == []


@pytest.mark.parametrize("error", [OSError("oh"), SystemExit(1)])
async def test_a_policy_that_fails_harms_nobody(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(_self: Audit) -> None:
        raise error

    monkeypatch.setattr(Audit, "lacks", lacks)
    with structlog.testing.capture_logs() as lines:
        config = parse(LISTEN + MEMORY + EXPORT + AUDIT, "f")
        await say_what_is_lacking(config, structlog.get_logger())
    assert [line["event"] for line in lines] == ["what clients will need could not be looked for"]


async def test_a_reload_says_it_too(workdir: Path) -> None:
    async with house(workdir, LISTEN + MEMORY + EXPORT) as gateway:
        assert (await gateway.reload(LISTEN + MEMORY + EXPORT + AUDIT)).ok
        [line] = gateway.events("clients will need what is not there")
        assert line["what"] == WANTS
