"""The lease that a gateway holds, beside an etcd that is slow; on a clock that jumps."""

from __future__ import annotations

from typing import cast

import pytest
import structlog
import trio
import trio.testing

from gateway.config import parse
from gateway.fleet import held
from gateway.fleet.answers import EtcdKey
from gateway.fleet.etcd import Etcd
from gateway.fleet.held import HeldLease
from tests.fleet.joined import CONFIG

SECONDS = 10


class Slow:
    """An etcd that takes so long to renew a lease."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.renewed = 0

    async def get(self, key: str) -> EtcdKey:
        return EtcdKey(key, "", 0)

    async def grant(self, seconds: int) -> tuple[int, float]:
        return 1, seconds

    async def change(self, *_said: object) -> int:
        return 1

    async def keep_alive(self, _lease: int) -> float:
        await trio.sleep(self.seconds)
        self.renewed += 1
        return SECONDS


@pytest.mark.parametrize(("answers", "times"), [(0, 40), (3.9, 25)])
async def test_a_lease_is_kept_however_slow_the_answers_are(
    answers: float,
    times: int,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as a member may take to answer."""
    monkeypatch.setattr(held, "boottime", trio.current_time)
    text = CONFIG.format(etcd="http://127.0.0.1:1", name="a", late=0, more="")
    config = parse(text.replace("lease-seconds = 120", f"lease-seconds = {SECONDS}"), "test")
    assert config.fleet is not None
    etcd, ran_out = Slow(answers), list[float]()
    lease = HeldLease(
        config.fleet,
        cast(Etcd, etcd),
        structlog.wrap_logger(structlog.testing.CapturingLogger()),
        ran_out=lambda: ran_out.append(trio.current_time()),
        lost=lambda _why: None,
    )
    await lease.join()
    with trio.move_on_after(10 * SECONDS):
        await lease.run()
    assert not ran_out
    assert abs(etcd.renewed - times) <= 1
