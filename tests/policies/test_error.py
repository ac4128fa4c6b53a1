from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.policy import RANGED, Cmd, Failed, Request
from policies.error import Error
from tests.policies.harness import Disk, configured, do, session, view

READ = Request(Cmd.READ, 512, 1024)


async def outcomes(policy: object, count: int, request: Request = READ) -> list[bool]:
    """Which of so many commands fail, in a session that begins now."""
    assert isinstance(policy, Error)
    own = policy.join(session())
    return [await fails(own, request) for _ in range(count)]


async def fails(policy: object, request: Request = READ) -> bool:
    assert isinstance(policy, Error)
    disk, error = Disk(), None
    try:
        await do(policy, request, disk)
    except Failed as failure:
        error = failure.error
    assert error in (None, policy.error)
    assert disk.asked == ([request] if error is None else [])
    return error is not None


@pytest.mark.parametrize("command", sorted(RANGED | {Cmd.FLUSH}))
async def test_every_command_can_fail(command: Cmd) -> None:
    request = Request(command) if command is Cmd.FLUSH else Request(command, 512, 2, data=b"ab")
    assert await fails(configured(Error, {"error": "ENOSPC"}), request)
    assert await fails(configured(Error, {"commands": [command.name]}), request)
    [other] = {"READ", "WRITE"} - {command.name} if command.value < 2 else ["READ"]
    assert not await fails(configured(Error, {"commands": [other]}), request)


async def test_the_error_and_its_text() -> None:
    with pytest.raises(Failed, match="EPERM: READ fails on purpose"):
        await do(configured(Error, {"error": "EPERM"}), READ, Disk())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rate": 0}, 0),
        ({"rate": "0%"}, 0),
        ({"rate": 1}, 1),
        ({"rate": "100%"}, 1),
        ({"rate": 0.25, "seed": 1}, 0.25),
        ({"rate": "25 %", "seed": 2}, 0.25),
        ({}, 1),
    ],
)
async def test_a_rate(options: dict[str, object], expected: float) -> None:
    failed = sum(await outcomes(configured(Error, options), 1000))
    # Seeded, or certain.
    assert failed == pytest.approx(1000 * expected, abs=50 if "seed" in options else 0)


async def test_a_seed_repeats_itself_in_every_session() -> None:
    policy = configured(Error, {"rate": 0.5, "seed": 7})
    first = await outcomes(policy, 100)
    assert first == await outcomes(policy, 100)
    assert first != await outcomes(configured(Error, {"rate": 0.5, "seed": 8}), 100)


async def test_without_a_seed_sessions_differ() -> None:
    policy = configured(Error, {"rate": 0.5})
    assert await outcomes(policy, 200) != await outcomes(policy, 200)


async def test_every_third() -> None:
    policy = configured(Error, {"every": 3})
    expected = [False, False, True, False, False, True, False]
    assert await outcomes(policy, 7) == expected
    assert await outcomes(policy, 7) == expected, "sessions count for themselves"


async def test_while_a_file_exists(tmp_path: Path) -> None:
    path = tmp_path / "fail"
    policy = configured(Error, {"file": str(path)})
    assert not await fails(policy)
    path.touch()
    assert await fails(policy)
    path.unlink()
    assert not await fails(policy)


async def test_what_may_not_be_looked_at_does_not_exist(tmp_path: Path) -> None:
    assert not await fails(configured(Error, {"file": str(tmp_path / ("x" * 300))}))


async def test_a_session_that_goes_well_first() -> None:
    policy = configured(Error, {"after-seconds": 60})
    assert isinstance(policy, Error)
    now = 1000.0
    policy._clock = lambda: now
    own = policy.join(session())
    now += 59.9
    assert not await fails(own)
    assert not await fails(policy.join(session()))
    now += 0.1
    assert await fails(own)
    assert not await fails(policy.join(session()))


def test_what_does_not_fail_costs_nothing() -> None:
    assert not configured(Error, {"rate": 0}).hooked(view())
    assert configured(Error, {"commands": ["TRIM"]}).hooked(view()) == [Cmd.TRIM]
    assert set(configured(Error, {}).hooked(view())) == RANGED | {Cmd.FLUSH}


MISTAKES: Sequence[tuple[dict[str, object], str]] = [
    ({"rate": 1.1}, 'expected a share from 0 to 1, or "0%" to "100%", got 1.1'),
    ({"rate": "101%"}, "got 101%"),
    ({"rate": "often"}, "got often"),
    ({"rate": True}, "got True"),
    ({"rate": "nan"}, "got nan"),
    ({"rate": 0.5, "every": 2}, "expected rate or every, got rate 0.5 and every 2"),
    ({"seed": 5}, "expected a rate with a seed, got seed 5 alone"),
    ({"every": 0}, "greater than or equal to 1"),
    ({"after-seconds": 86401}, "less than or equal to 86400"),
    ({"commands": ["DISC"]}, "'READ', 'WRITE', 'WRITE_ZEROES'"),
    ({"commands": "READ"}, "valid tuple"),
    ({"error": "EAGAIN"}, "expected one of EPERM, EIO"),
]


@pytest.mark.parametrize(("options", "said"), MISTAKES)
def test_mistakes(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as failure:
        configured(Error, options)
    assert said in str(failure.value)
