"""The socket of a link to a disk whose home is here: what it lets go, and whether it has ended well."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gateway.fleet.guarded import GuardedSocket
from gateway.wire.constants import Cmd
from gateway.wire.framing import EXTENDED, SIMPLE, Framing


class Link:
    """A link, and the server's end of it."""

    def __init__(self) -> None:
        ours, self.server = socket.socketpair()
        self.server.setblocking(False)
        self.may = True
        self.ended: list[bool] = []
        self.socket = GuardedSocket(ours, lambda: self.may, self.ended.append, 2)

    def received(self) -> bytes:
        try:
            return self.server.recv(1 << 16)
        except BlockingIOError:
            return b""


@pytest.fixture
def link() -> Iterator[Link]:
    there = Link()
    yield there
    there.socket.close()
    there.server.close()


FRAMINGS = (SIMPLE, EXTENDED)


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_nothing_goes_that_may_not_but_a_goodbye(link: Link, framing: Framing) -> None:
    link.may = False
    for data in (framing.encode_request(Cmd.FLUSH, 0, 1, 0, 0), memoryview(bytes(framing.disc()))):
        with pytest.raises(OSError, match="may not send"):
            link.socket.send(data)
        with pytest.raises(OSError, match="may not send"):
            link.socket.sendmsg((data, b"x"))
    assert link.received() == b""
    link.socket.send(framing.disc())
    assert link.received() == framing.disc()


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_what_a_client_writes_is_no_goodbye(link: Link, framing: Framing) -> None:
    """The end of a WRITE may come by itself, and may have the bytes of a DISC."""
    request = framing.encode_request(Cmd.WRITE, 0, 1, 0, 512 + len(framing.disc()))
    link.socket.sendmsg((request, bytes(512)))
    link.socket.send(memoryview(bytes(framing.disc())))
    link.socket.close()
    assert link.ended == [False]


@pytest.mark.parametrize(
    ("unanswered", "well"), [((), True), ((7,), False)], ids=["answered", "unanswered"]
)
def test_it_has_ended_well_if_all_was_answered(
    link: Link, unanswered: tuple[int, ...], well: bool
) -> None:
    link.socket.send(SIMPLE.encode_request(Cmd.FLUSH, 0, 1, 0, 0))
    link.socket.send(SIMPLE.disc(unanswered=unanswered))
    link.socket.close()
    assert link.ended == [well]


def test_one_that_has_sent_nothing_has_ended_well(link: Link) -> None:
    link.socket.close()
    link.socket.close()
    assert link.ended == [True]
