"""Make a schedule that fails as small as it goes: fewer steps, plainer settings, while it still fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from tests.tools.schedules.run import Outcome, run
from tests.tools.schedules.settings import Settings
from tests.tools.schedules.steps import Step

MOST_RUNS = 600
"""So many schedules are tried at most: half a minute."""


def kind_of(problem: str) -> str:
    """Say what sort of wrong something is: a smaller schedule that fails in another way is another one."""
    for words in ("succeeded", "failed with", "has stamp", "cut off", "not answered"):
        if words in problem:
            return f"{problem.split()[0]} {words}"
    return problem.split("\n")[-1][:40]


def shrink(outcome: Outcome, most_runs: int = MOST_RUNS) -> Outcome:
    """Give a smaller schedule that fails in the same way; the same if there is none."""
    runs = 0
    best = outcome
    kind = kind_of(outcome.problem)

    def fails(settings: Settings, steps: Sequence[Step]) -> bool:
        nonlocal runs, best
        if runs >= most_runs:
            return False
        runs += 1
        tried = run(outcome.seed, settings, steps)
        if not tried.problem or kind_of(tried.problem) != kind:
            return False
        best = tried
        return True

    while _fewer_steps(best, fails) or _plainer(best, fails):
        pass
    return best


Fails = Callable[[Settings, Sequence[Step]], bool]


def _fewer_steps(outcome: Outcome, fails: Fails) -> bool:
    """Leave out runs of steps: half of all, then a quarter, down to one."""
    steps, done = list(outcome.steps), False
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if fails(outcome.settings, fewer):
                steps, done = fewer, True
            else:
                at += size
        size //= 2
    return done


def _plainer(outcome: Outcome, fails: Fails) -> bool:
    """Have one setting as it is when nothing is said."""
    plain = Settings()
    for field in fields(Settings):
        value = getattr(plain, field.name)
        if getattr(outcome.settings, field.name) != value:
            settings = replace(outcome.settings, **{field.name: value})
            # What else it needs it may not have any more.
            if settings.possible and fails(settings, outcome.steps):
                return True
    return False
