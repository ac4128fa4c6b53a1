"""What the model cannot see of a bundle's core: what is carried over, and bounds."""

from __future__ import annotations

from gateway.protocol.export import Export
from gateway.quirks import Dialect
from gateway.relay.bundle.core import MOST_LOSSES, Bundle
from gateway.relay.bundle.line import Line
from gateway.relay.bundle.ports import Port
from gateway.relay.bundle.work import LINE_COMMANDS
from gateway.relay.losses import Losses
from gateway.relay.scan.asks import Ask, Outcome
from gateway.wire.constants import Cmd, Errno
from tests.relay.bundle.model import FLAGS

EXPORT = Export(2**20, int(FLAGS))


def test_a_first_line_proves_nothing_about_what_was_brought_along() -> None:
    losses = Losses()
    debt = losses.open()
    trail = losses.trail(debt)
    losses.came_up(trail)
    bundle = Bundle(EXPORT, 1, trail, clock=lambda: 0.0)
    trail.unflushed.note([(0, 10)])
    bundle.begin_without("it died")
    bundle.linked(Line(0, EXPORT, Dialect(), {}))
    bundle.push()
    assert debt.why
    assert debt.is_lost(9, 10)


def test_no_more_is_under_way_on_a_line_than_may_be() -> None:
    bundle = Bundle(EXPORT, 1, Losses().trail(None), clock=lambda: 0.0)
    line = Line(0, EXPORT, Dialect(), {})
    bundle.linked(line)
    port = Port(None, lambda: None)
    for _ in range(3 * LINE_COMMANDS):
        bundle.ask(port, Ask(Cmd.READ, 0, 1), lambda _outcome: None)
    bundle.push()
    assert line.under_way == LINE_COMMANDS


def test_what_is_put_off_after_a_loss_keeps_nobody_else_waiting() -> None:
    bundle = Bundle(EXPORT, 1, Losses().trail(None), clock=lambda: 0.0)
    line = Line(0, EXPORT, Dialect(), {})
    bundle.linked(line)
    writer, reader = Port(None, lambda: None), Port(None, lambda: None)
    for number in range(LINE_COMMANDS):
        zeroes = Ask(Cmd.WRITE_ZEROES, number, 1)  # whether these were done cannot be seen
        bundle.ask(writer, zeroes, lambda _outcome: None)
    bundle.push()
    bundle.lost(line, "it died")
    bundle.linked(again := Line(0, EXPORT, Dialect(), {}))
    bundle.push()
    before = again.under_way
    bundle.ask(reader, Ask(Cmd.READ, LINE_COMMANDS, 1), lambda _outcome: None)
    bundle.push()
    assert (before, again.under_way) == (0, 1)


def test_what_takes_the_server_down_fails_alone() -> None:
    bundle = Bundle(EXPORT, 1, Losses().trail(None), clock=lambda: 0.0)
    outcomes: dict[str, int] = {}
    ports = {name: Port(None, lambda: None) for name in ("deadly", "innocent")}

    def ask(name: str, offset: int) -> None:
        def done(outcome: Outcome) -> None:
            outcomes[name] = outcome.error

        bundle.ask(ports[name], Ask(Cmd.READ, offset, 1), done)

    ask("innocent", 0)
    ask("deadly", 1)
    for _ in range(MOST_LOSSES):
        line = Line(0, EXPORT, Dialect(), {})
        bundle.linked(line)
        bundle.push()
        while asked := line.traffic.asks.take():
            if any(each.offset for each, _done in asked):
                bundle.lost(line, "it died")
                break
            for _each, done in asked:
                done(Outcome())
            bundle.push()
    for port in ports.values():
        bundle.answers(port)
    assert outcomes == {"deadly": int(Errno.EIO), "innocent": 0}
