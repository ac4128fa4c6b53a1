"""The compiled pump beside Python: what goes to both, and how it is cut, is chosen by an input.

That is a race of `tests.hub.races`, whose choices are bytes of the input instead of chance. So every input is a
race, and one that is changed a little is a race that goes a little differently. A difference between both is a
finding, and so is what a sanitiser says; where there is no pump, Python runs beside itself.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from itertools import product
from random import Random
from typing import Any

from gateway.wire.limits import KIB, MIB
from tests.fuzz.instrumented import TARGET
from tests.fuzz.target import Pieces, Target
from tests.hub.races import Race

NOISE = Random(0).randbytes(3 * MIB)
"""What is written and read: nothing depends on it, but no two parts of it are the same."""

MOST_ACTIONS = 100
"""So that no input takes long."""

LAST_SENDS = 4
"""When the input has come to its end, so that what is left arrives."""

SPECIAL = (b"\0", b"\xff", bytes(4), b"\xff" * 4, b"\x7f" + b"\xff" * 7, bytes(8), b"\xff" * 8)


class Choices(Random):
    """Chooses what the bytes of an input say, and the first there is when it has come to their end."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0
        self._made = 0

    @property
    def left(self) -> int:
        """How many bytes have not been used."""
        return max(0, len(self._data) - self._at)

    def take(self, length: int) -> bytes:
        """Give the next bytes as they are."""
        found = self._data[self._at : self._at + length]
        self._at += length
        return found.ljust(length, b"\0")

    def _one_of(self, count: int) -> int:
        return int.from_bytes(self.take(((count - 1).bit_length() + 7) // 8)) % count

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """Choose one of the range."""
        choices = range(start) if stop is None else range(start, stop, step)
        return choices[self._one_of(len(choices))]

    def choice(self, seq: Any) -> Any:
        """Choose one of what there is."""
        return seq[self._one_of(len(seq))]

    def shuffle(self, x: MutableSequence[Any]) -> None:
        """Choose who is the first; the others stay in their order."""
        if x:
            x.insert(0, x.pop(self._one_of(len(x))))

    def random(self) -> float:
        """Give a number below 1; small ones are small bytes."""
        return self.take(1)[0] / 256

    def getrandbits(self, k: int) -> int:
        """Give a number that nothing depends on, another each time."""
        return int.from_bytes(self.randbytes((k + 7) // 8)) >> -k % 8

    def randbytes(self, n: int) -> bytes:
        """Give data that nothing depends on."""
        self._made = (self._made + 4099) % (len(NOISE) - n + 1)
        return NOISE[self._made : self._made + n]


class ChosenRace(Race):
    """A race that lasts as long as the input has bytes."""

    random: Choices
    counts = (1, 2, 9, 33)
    whole = (4 * KIB, 512, 16 * KIB, 20 * KIB, 4 * KIB, 100 * KIB, 300 * KIB)
    lengths = (*whole, 1, MIB)
    """Not much at a time: most of an input's time is data that is carried about."""

    def __init__(self, data: bytes) -> None:
        super().__init__(Choices(data))

    def actions(self) -> Iterator[int]:
        """Give one after the other."""
        for number in range(MOST_ACTIONS):
            if not self.random.left:
                break
            yield number
        for _ in range(LAST_SENDS):
            self._send((1 << 22,))
            for racer in self.racers:
                racer.step()

    def _ask(self, count: int) -> bytes:
        """One byte may ask for the same many times, all with one cookie."""
        if self.random.randrange(2):
            return super()._ask(count)
        request = self._request()
        return request * (count if len(request) > KIB else 4 * count)

    def _happens(self, chance: float) -> bool:
        return chance > 0 and super()._happens(chance)

    def _spoilt(self, message: bytes) -> bytes:
        """Put anything in the place of a field, or flip a bit."""
        random = self.random
        at = random.randrange(min(len(message), 40))
        match random.randrange(4):
            case 0:
                other = SPECIAL[random.randrange(len(SPECIAL))]
            case 1:
                other = random.take(random.choice((1, 2, 4, 8)))
            case _:
                other = bytes([message[at] ^ 1 << random.randrange(8)])
        return message[:at] + other[: len(message) - at] + message[at + len(other) :]


def _run(pieces: Pieces) -> None:
    race = ChosenRace(b"".join(pieces))
    race.run(race.actions())


# --- What to begin with: bytes that say what `tests.hub.races` would take by chance, in its order.

_ALL = 11
"""Of `CUTS`."""


def _terms(link: int, client: int, remembers: int) -> bytes:
    return bytes((4 * remembers, 0, link, client, 0, 0, 1, remembers, 0, 0, 1, 0))


def _request(command: int, length: int, at: int) -> bytes:
    """Give one that is plain, behind which nothing is compared."""
    return bytes((0, 0, 1, command, length, 0, at, 0, 1))


_SEND = bytes((6, 0, _ALL, _ALL, 1))
_ANSWER = bytes((3, 0, 1, 1, 1, 1, 1))
_TAKE_AND_COMPARE = bytes((9, 2, 0))
_MESSAGES = (
    *(_request(command, length, 1) for command in (0, 2, 4) for length in (0, 3)),
    _SEND,
    _ANSWER,
    _TAKE_AND_COMPARE,
)
_ANSWER_READ = bytes((3, 0, 0, 1))  # where nothing is odd, and another is under way
_BEGIN = b"".join(
    (_request(0, 0, 0), _request(2, 3, 1), _SEND, _ANSWER_READ, _SEND, _TAKE_AND_COMPARE)
)
_START = tuple(
    _terms(link, client, remembers) + _BEGIN + Random(f"{link} {client} {remembers}").randbytes(300)
    for link, client, remembers in product(range(3), range(3), range(2))
)

TARGETS = {TARGET: Target(_run, _START, _MESSAGES, comes_in_pieces=False)}
