"""What is asked of all workers is answered, whatever one of them does."""

from __future__ import annotations

from typing import NoReturn

import trio
import trio.testing

from gateway.config.models import Log
from gateway.handover.channel import Channel, pair
from gateway.log import logger
from gateway.web.verbs import DOES, LOOKS
from gateway.workers.asking import QUESTION_SECONDS
from gateway.workers.crew import Crew
from gateway.workers.desk import Desk


def nobody(*_arguments: object) -> NoReturn:
    raise AssertionError("this is not asked")


BY_OTHERS = {"log"}
"""What is answered for whoever speaks HTTP, and has no need of the desk (`gateway.workers.front`)."""


def test_whatever_one_process_answers_several_do() -> None:
    """But for tickets, which are not known to several workers yet (`gateway.config.worker_checks`)."""
    crew = Crew(1, logger(Log()), nobody, nobody, nobody)
    verbs = {each.verb for each in (*LOOKS, *DOES) if not each.verb.startswith("export-")}
    assert Desk(crew, nobody, nobody, nobody, 0.0).verbs().keys() == verbs - BY_OTHERS


async def test_a_worker_that_says_nothing_keeps_nobody_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As one that was stopped, or whose hub does not go round."""
    crew = Crew(1, logger(Log()), nobody, nobody, nobody)
    [worker] = crew.workers
    ours, theirs = pair()
    worker.channel, worker.serves = Channel(ours), True
    desk = Desk(crew, nobody, nobody, nobody, 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.channel.run, nobody)
        answer = await desk.verbs()["status"]({})
        nursery.cancel_scope.cancel()
    assert answer.problems == ("worker 0 does not answer: nothing came from it for 10 s",)
    assert trio.current_time() >= QUESTION_SECONDS
    theirs.close()
