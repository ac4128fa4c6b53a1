"""Races that are chosen by an input."""

from __future__ import annotations

import socket
from random import Random

import pytest

from gateway.hub.pumped import Pumped
from tests.fuzz.pump import NOISE, Choices, ChosenRace
from tests.fuzz.target import check
from tests.fuzz.targets import TARGETS


def raced(data: bytes) -> dict[str, object]:
    race = ChosenRace(data)
    race.run(race.actions())
    return race.plain.state()


def test_an_input_is_a_race() -> None:
    start, other, *_ = TARGETS["pump"].start
    assert raced(start) == raced(start)
    assert raced(start) != raced(other)
    raced(b"")


def test_what_a_pump_does_otherwise_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing:
        """Takes what a client has sent, and that is all."""

        error = 0

        def __init__(self, client: socket.socket) -> None:
            self.client = client

        def requests(self) -> int:
            self.client.recv(1 << 20)
            return 0

        def replies(self) -> int:
            return -2

        def scan_requests(self) -> bool:
            return False

        def scan_replies(self) -> bool:
            return False

    def have(session: Pumped) -> None:
        assert isinstance(session.client, socket.socket)
        session._pump = Losing(session.client)

    monkeypatch.setattr(Pumped, "_have_pumped", have)
    with pytest.raises(AssertionError, match="with the pump"):
        check(TARGETS["pump"], TARGETS["pump"].start[0])


def test_choices_are_the_bytes_of_the_input() -> None:
    chosen = Choices(bytes((2, 1, 4, 255, 9, 1, 3)))
    assert chosen.choice("abc") == "c"
    assert chosen.choice("a") == "a"  # that is no choice
    assert chosen.randrange(0, 4096 * 512, 4096) == 4096 * 260
    assert chosen.random() == 255 / 256
    assert chosen.randrange(5, 8) == 5
    order = [7, 8, 9]
    chosen.shuffle(order)
    assert order == [8, 7, 9]
    assert chosen.take(4) == b"\3\0\0\0"
    assert chosen.left == 0
    assert chosen.choice("abc") == "a"


def test_data_is_not_chosen_and_never_the_same() -> None:
    chosen = Choices(b"abc")
    assert chosen.randbytes(1000) != chosen.randbytes(1000)
    assert chosen.randbytes(2000) in NOISE
    assert chosen.getrandbits(64) != chosen.getrandbits(64)
    assert chosen.getrandbits(3) < 8
    assert chosen.left == 3


@pytest.mark.parametrize("data", [bytes(32), b"\xff" * 32, Random(0).randbytes(32)])
def test_a_message_that_was_spoilt_is_as_long_as_it_was(data: bytes) -> None:
    message = bytes(range(1, 29))
    race = ChosenRace(b"")
    race.run(())
    race.random = Choices(data)
    spoilt = race._spoilt(message)
    assert len(spoilt) == len(message)
    assert spoilt != message
