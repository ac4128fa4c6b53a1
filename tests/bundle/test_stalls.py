"""Lines that say nothing, and the spare line that READs go over meanwhile. (The model has neither.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gateway.bundle.line import SPARE, Line
from gateway.bundle.ports import Port
from gateway.losses.rule import Losses
from gateway.protocol.asks import Ask, Outcome
from gateway.protocol.export import Export
from gateway.quirks import Dialect
from gateway.wire.constants import Cmd, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.transmission import encode_simple_reply
from tests.bundle.model import FLAGS
from tests.tools.defaults import SURVIVAL, bundle_of

STALL_SECONDS = 5.0
READ = Ask(Cmd.READ, 0, 4)
WRITE = Ask(Cmd.WRITE, 0, 4, data=b"new!")


class Stage:
    """A bundle of one line, and a client."""

    def __init__(self, flags: Flag = FLAGS) -> None:
        self.now = 100.0
        self.export = Export(2**20, int(flags))
        self.said: list[str] = []
        self.answers: list[Outcome] = []
        self.bundle = bundle_of(
            self.export,
            1,
            Losses().trail(None),
            clock=lambda: self.now,
            survival=replace(SURVIVAL, stall_seconds=STALL_SECONDS),
            say=self._say,
        )
        self.port = Port(None, lambda: self.bundle.answers(self.port))
        self.line = self.new_line(0)
        self.bundle.linked(self.line)
        self.bundle.push()

    def _say(self, what: str, _details: Mapping[str, object]) -> None:
        self.said.append(what)

    def new_line(self, number: int) -> Line:
        return Line(number, self.export, Dialect(), {})

    def ask(self, *asks: Ask) -> None:
        for ask in asks:
            self.bundle.ask(self.port, ask, self.answers.append)
        self.bundle.push()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.bundle.due <= self.now:
            self.bundle.tick()
            self.bundle.push()

    def link_spare(self) -> Line:
        assert self.bundle.wants_spare
        spare = self.new_line(SPARE)
        self.bundle.spare_linked(spare)
        self.bundle.push()
        return spare

    def reply(self, line: Line, data: bytes = b"", error: int = 0) -> None:
        """The oldest command under way on a line is answered."""
        cookie = next(iter(line.traffic.in_flight))
        reply = bytearray(encode_simple_reply(cookie, error) + data)
        line.scan.feed(reply, memoryview(reply), 0, len(reply), [])
        self.bundle.heard(line)
        self.bundle.push()


def test_a_line_is_stalled_when_it_has_said_nothing_for_so_long() -> None:
    stage = Stage()
    stage.ask(READ)
    assert stage.bundle.due == stage.now + STALL_SECONDS
    stage.wait(STALL_SECONDS - 0.1)
    assert not stage.bundle.wants_spare
    stage.wait(0.1)
    assert stage.bundle.wants_spare
    assert stage.said == ["the server answers nothing"]
    stage.reply(stage.line, b"here")
    assert not stage.bundle.wants_spare


def test_a_line_that_has_nothing_to_say_is_not_stalled() -> None:
    stage = Stage()
    stage.wait(10 * STALL_SECONDS)
    stage.ask(READ)
    stage.wait(STALL_SECONDS - 0.1)
    assert not stage.bundle.wants_spare


def test_any_byte_is_a_sign_of_life() -> None:
    stage = Stage()
    stage.ask(READ)
    stage.wait(STALL_SECONDS - 0.1)
    stage.bundle.heard(stage.line)
    stage.wait(0.2)
    assert not stage.bundle.wants_spare


def test_no_other_connection_is_good_without_multi_conn() -> None:
    stage = Stage(FLAGS & ~Flag.CAN_MULTI_CONN)
    stage.ask(READ)
    stage.wait(STALL_SECONDS)
    assert not stage.bundle.wants_spare
    assert len(stage.said) == 2


@pytest.mark.parametrize("spare_first", [True, False])
def test_who_answers_a_read_first_is_believed(spare_first: bool) -> None:
    stage = Stage()
    stage.ask(READ)
    stage.wait(STALL_SECONDS)
    spare = stage.link_spare()
    first, second = (spare, stage.line) if spare_first else (stage.line, spare)
    stage.reply(first, b"1st.")
    stage.reply(second, b"2nd.")
    assert [bytes(outcome.data) for outcome in stage.answers] == [b"1st."]
    assert stage.bundle.idle


def test_an_error_of_the_spare_line_is_nobody_s() -> None:
    stage = Stage()
    stage.ask(READ)
    stage.wait(STALL_SECONDS)
    stage.reply(stage.link_spare(), error=Errno.EIO)
    assert not stage.answers
    stage.reply(stage.line, b"here")
    assert [bytes(outcome.data) for outcome in stage.answers] == [b"here"]


def test_reads_that_come_now_go_over_the_spare_line_alone_and_again_if_it_is_lost() -> None:
    stage = Stage()
    stage.ask(READ)
    stage.wait(STALL_SECONDS)
    spare = stage.link_spare()
    stage.ask(Ask(Cmd.READ, 8, 4))
    assert (stage.line.under_way, spare.under_way) == (1, 2)
    stage.bundle.spare_lost()
    stage.bundle.push()
    assert stage.line.under_way == 2


def test_writes_are_never_asked_of_another_line_and_no_read_of_what_they_write() -> None:
    stage = Stage()
    stage.ask(WRITE, READ)
    stage.wait(STALL_SECONDS)
    spare = stage.link_spare()
    assert (stage.line.under_way, spare.under_way) == (2, 0)
    stage.ask(READ, Ask(Cmd.READ, 4, 4))
    assert (stage.line.under_way, spare.under_way) == (3, 1)


def test_what_is_written_and_not_flushed_is_read_where_it_was_written() -> None:
    stage = Stage()
    stage.ask(WRITE)
    stage.reply(stage.line)
    stage.ask(READ)
    stage.wait(STALL_SECONDS)
    assert stage.link_spare().under_way == 0
