"""What may happen in a schedule, step by step.

A step is a word and a number: the number seeds whatever the step has to choose, among what there is then. So
any list of steps is a schedule, and one from which steps were left out still is (`shrink`).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

STEPS = {
    "ask": 40,
    "serve": 40,
    "open": 6,
    "leave": 2,
    "vanish": 1,
    "wait": 6,
    "kill": 3,
    "halt": 2,
    "start": 3,
    "cut": 3,
    "silence": 1,
    "speak": 1,
    "pause": 1,
    "resume": 1,
    "switch": 1,
    "fail": 3,
}
"""How often each comes."""

CALM = {
    "ask": 10,
    "serve": 8,
    "flush": 5,
    "open": 3,
    "leave": 3,
    "kill": 2,
    "halt": 1,
    "start": 2,
    "cut": 1,
    "fail": 1,
}
"""Of some schedules: few commands, each by itself, and much that befalls them."""

SHORTEST, LONGEST = 12, 70

REWIND = "rewind"
"""Not drawn with the others, but put between them where the server may come back as an older one: a snapshot is
taken at the first, and gone back to at the second, and so on."""


MOVE = "move"
"""Put between them where there is a fleet: the home of the disk dies, and another one begins."""


UPGRADE = "upgrade"
"""Put between them as well: a newer gateway takes the place of the one that there is."""


@dataclass(frozen=True)
class Step:
    """One of them."""

    what: str
    number: int

    def __str__(self) -> str:
        return f"{self.what} {self.number}"


def draw(random: Random) -> list[Step]:
    """Draw the steps of a schedule."""
    weights = STEPS if random.random() < 0.6 else CALM
    count = random.randint(SHORTEST, LONGEST)
    opened = [Step("open", random.randrange(2**32)) for _ in range(random.randint(1, 3))]
    kinds = random.choices(list(weights), list(weights.values()), k=count)
    return [*opened, *(Step(kind, random.randrange(2**32)) for kind in kinds)]


def mixed_with(random: Random, steps: list[Step], what: str, times: int) -> list[Step]:
    """Give steps with others between them that are not drawn with them."""
    mixed = list(steps)
    for _ in range(times):
        mixed.insert(random.randint(1, len(mixed)), Step(what, random.randrange(2**32)))
    return mixed
