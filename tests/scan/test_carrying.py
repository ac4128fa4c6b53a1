"""A server that drops the connection at any byte of a conversation, and comes back: its client notices nothing.

Each framing that a client and an upstream may have, and each byte in either direction, is a case. The reader of
the replies (`tests.scan.peers.Client`) fails over anything told twice, not at all, or out of order.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

import gateway.scan.traffic as traffic_module
from gateway.losses.rule import Losses
from gateway.protocol.asks import Done, Outcome
from gateway.protocol.export import Export, offer, view_of
from gateway.scan.carrying import carry_over
from gateway.scan.memory import Memory
from gateway.scan.partial import Partial
from gateway.scan.plan import plan
from gateway.scan.requests import RequestScan
from gateway.scan.traffic import Traffic
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from gateway.wire.handshake import BlockSizes, MetaContext
from tests.hub.wires import CountingPool
from tests.scan import peers
from tests.sessions.survivors import Survivor

pytestmark = pytest.mark.real

SIZE = 64 * 1024
FLAGS = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_DF
)
THEIRS = (MetaContext(70, "base:allocation"), MetaContext(71, "x:more"))
OURS = (MetaContext(5, "base:allocation"), MetaContext(6, "x:more"))
FRAMINGS = [
    (client, link)
    for client, links in {
        SIMPLE: (SIMPLE,),
        STRUCTURED: (SIMPLE, STRUCTURED),
        EXTENDED: (SIMPLE, STRUCTURED, EXTENDED),
    }.items()
    for link in links
]


class Disk:
    """A server's, and how much of each direction it bears before it drops the connection."""

    def __init__(self, framing: Framing, block: int) -> None:
        self.content = bytearray(peers.content(0, SIZE))
        self.framing = framing
        self.block = block
        self.asked: list[Cmd] = []

    def reply(
        self, command: Cmd, flags: int, cookie: int, at: int, length: int, data: bytes
    ) -> bytes:
        """Do a command; READs come in three chunks, with a hole in the middle where there are zeros."""
        framing, content = self.framing, self.content
        self.asked.append(command)
        assert not (at | length) % self.block
        match command:
            case Cmd.READ if not framing.chunked:
                return framing.success(cookie, at, read=True) + content[at : at + length]
            case Cmd.READ:
                return self._chunks(cookie, flags, at, length)
            case Cmd.WRITE:
                content[at : at + length] = data
            case Cmd.TRIM | Cmd.WRITE_ZEROES:
                content[at : at + length] = bytes(length)
            case Cmd.BLOCK_STATUS:
                return framing.status(cookie, at, 70, [(length, 0)], done=False) + framing.status(
                    cookie, at, 71, [(length // 2, 1), (length - length // 2, 0)], done=True
                )
        return framing.success(cookie, at, read=False)

    def _chunks(self, cookie: int, flags: int, at: int, length: int) -> bytes:
        framing, third = self.framing, length // 3
        if flags & CmdFlag.DF:
            data = bytes(self.content[at : at + length])
            return framing.data_head(cookie, at, at, length, done=True) + data
        said = b""
        parts = [(0, third), (2 * third, length), (third, 2 * third)]
        parts = [(first, behind) for first, behind in parts if first < behind]
        for first, behind in parts:
            data = bytes(self.content[at + first : at + behind])
            done = (first, behind) == parts[-1]
            if not any(data):
                said += framing.hole(cookie, at, at + first, behind - first, done=done)
            else:
                said += framing.data_head(cookie, at, at + first, behind - first, done=done) + data
        return said


class Link:
    """One connection to it, which is dropped after so many bytes in one direction or the other."""

    def __init__(self, disk: Disk, sock: socket.socket, *, takes: int, says: int) -> None:
        self._disk, self._sock = disk, sock
        self._takes, self._says = takes, says
        self._received = self._to_send = b""
        self.dropped = False

    def step(self) -> bool:
        """Say whether anything was done."""
        if self.dropped:
            return False
        data = b""
        with suppress(BlockingIOError):
            data = self._sock.recv(self._takes)
            if not data:
                self._drop()
                return True
        self._received += data
        self._takes -= len(data)
        while reply := self._next():
            self._to_send += reply
        piece = self._to_send[: min(self._says, 4096)]
        if piece:
            self._sock.send(piece)
            self._to_send = self._to_send[len(piece) :]
            self._says -= len(piece)
        if not self._takes or not self._says:
            self._drop()
        return bool(data or piece)

    def _next(self) -> bytes:
        layout, received = self._disk.framing.request, self._received
        if len(received) < layout.size:
            return b""
        _magic, word, cookie, offset, length = layout.unpack_from(received)
        command = Cmd(word & 0xFFFF)
        behind = layout.size + (length if command is Cmd.WRITE else 0)
        if len(received) < behind:
            return b""
        self._received = received[behind:]
        data = received[layout.size : behind]
        return self._disk.reply(command, word >> 16, cookie, offset, length, data)

    def _drop(self) -> None:
        self._sock.close()
        self.dropped = True


ENDLESS = 10**9
POOL = CountingPool()
"""For all conversations, one after the other: its buffers are dear to make."""


class Conversation:
    """One client, whose requests are sent together, or one after the other."""

    def __init__(
        self,
        client: Framing,
        link: Framing,
        *,
        block: int = 1,
        base: int = 0,
        takes: int = ENDLESS,
        says: int = ENDLESS,
        translated: str = "",
        flags: int = int(FLAGS),
        goes_back: bool = True,
    ) -> None:
        export = Export(
            SIZE,
            flags,
            BlockSizes(block, 4096, SIZE),
            structured=link.chunked,
            extended=link is EXTENDED,
            contexts=THEIRS if link.chunked else (),
        )
        view = view_of(export)
        promised = offer(
            view,
            structured=client.chunked,
            extended=client is EXTENDED,
            selected=OURS if link.chunked else (),
        )
        self.client, self.base = client, base
        self.disk = Disk(link, block)
        self.pool = POOL
        self.survivor = Survivor(promised, export, pool=self.pool, translated=translated)
        self.survivor.session.begin()
        self._links = [Link(self.disk, self.survivor.wires.upstream, takes=takes, says=says)]
        self._reader = peers.Client([], structured=client.chunked, extended=client is EXTENDED)
        self._received = b""
        self._goes_back = goes_back

    def ask(self, requests: list[peers.Request]) -> None:
        """Send requests at once, and go on until all are answered."""
        reader, sock = self._reader, self.survivor.wires.client
        to_send = b""
        for request in requests:
            reader.under_way[request.cookie] = request
            to_send += request.extended_bytes if self.client is EXTENDED else request.bytes
        idle = 0
        while reader.under_way or to_send:
            with suppress(BlockingIOError):
                to_send = to_send[sock.send(to_send) :] if to_send else b""
            idle = 0 if self._step() else idle + 1
            assert idle < 10, f"they wait for each other, with {reader.under_way} under way"
            with suppress(BlockingIOError):
                data = sock.recv(10**6)
                assert data, f"the client is disconnected: {self.survivor.session.reason}"
                idle = 0
                reader.read(self._received + data)
                self._received = reader.cut_off

    def _step(self) -> bool:
        survivor = self.survivor
        did = survivor.wires.step()
        did |= self._links[-1].step()
        if survivor.down:
            self._links.append(Link(self.disk, survivor.connect(), takes=ENDLESS, says=ENDLESS))
            did = True
        return did or (self._goes_back and survivor.go_back())

    def settle(self) -> None:
        """Go on until there is nothing to do."""
        while self._step():
            pass

    @property
    def replies(self) -> dict[int, peers.Reply]:
        """What has been answered, by cookie."""
        return {reply.cookie: reply for reply in self._reader.replies}

    def finish(self) -> None:
        """End, and look whether anything is left."""
        self.settle()
        session, traffic = self.survivor.session, self.survivor.session.traffic
        assert session.bug is None
        assert not traffic.in_flight
        assert not traffic.jobs
        assert not traffic.partial
        assert traffic.memory is None or (not traffic.memory.kept and not traffic.memory.kept_bytes)
        assert (traffic.jobs.bytes, traffic.jobs.waiting) == (0, 0)
        assert not self.pool.taken, "an idle session holds a buffer"
        for link in self._links:
            if not link.dropped:
                link._drop()
        self.survivor.close()
        assert not self.pool.taken


def request(
    number: int, command: Cmd, offset: int = 0, length: int = 0, fill: int = 0, flags: int = 0
) -> peers.Request:
    data = bytes([fill]) * length if command is Cmd.WRITE else b""
    return peers.Request(command, flags, number, offset, length, data)


def requests(client: Framing, link: Framing) -> list[peers.Request]:
    """Every kind, no two of which meet."""
    asked = [
        request(1, Cmd.WRITE, 0, 96, 0xA1),
        request(2, Cmd.READ, 4096, 93),
        request(3, Cmd.TRIM, 1024, 512),
        request(4, Cmd.WRITE, 2048, 60, 0xA4, CmdFlag.FUA),
        request(5, Cmd.FLUSH),
        request(6, Cmd.WRITE_ZEROES, 3072, 64),
        request(7, Cmd.READ, 8192, 48, flags=CmdFlag.DF if link.chunked else 0),
        request(8, Cmd.READ, 16384, 1),
    ]
    if link.chunked:
        asked.append(request(9, Cmd.BLOCK_STATUS, 0, 4096))
    return asked


def check(talk: Conversation, asked: list[peers.Request]) -> None:
    replies = talk.replies
    for each in asked:
        reply = replies[each.cookie]
        assert not reply.error, f"{each} failed with {reply.error}"
        if each.command == Cmd.READ:
            assert reply.data == peers.content(each.offset, each.length)
        if each.command == Cmd.BLOCK_STATUS:
            assert set(reply.status) == {5, 6}
    assert talk.disk.content[:96] == b"\xa1" * 96
    assert talk.disk.content[96:1024] == peers.content(96, 928)
    assert talk.disk.content[1024:1536] == bytes(512)
    assert talk.disk.content[2048:2108] == b"\xa4" * 60
    assert talk.disk.content[3072:3136] == bytes(64)


def whole(make: Callable[[int, int], Conversation], ask: list[peers.Request]) -> tuple[int, int]:
    """How many bytes a conversation takes in each direction."""
    talk = make(ENDLESS, ENDLESS)
    talk.ask(ask)
    check(talk, ask)
    [link] = talk._links
    taken, said = ENDLESS - link._takes, ENDLESS - link._says
    talk.finish()
    return taken, said


def cuts(
    make: Callable[[int, int], Conversation], ask: list[peers.Request]
) -> Iterator[tuple[int, int]]:
    taken, said = whole(make, ask)
    # A prime stride, so that each kind of message is cut in every place by some pair of framings.
    yield from ((cut, ENDLESS) for cut in range(1, taken + 1) if not cut % 7)
    yield from ((ENDLESS, cut) for cut in range(1, said + 1) if not cut % 3)


@pytest.mark.parametrize("translated", ["", "all are jobs"], ids=["fast", "jobs"])
@pytest.mark.parametrize(("client", "link"), FRAMINGS, ids=lambda framing: str(framing))
def test_no_cut_is_noticed(client: Framing, link: Framing, translated: str) -> None:
    asked = requests(client, link)

    def make(takes: int, says: int) -> Conversation:
        return Conversation(client, link, takes=takes, says=says, translated=translated)

    lost = returned = 0
    for takes, says in cuts(make, asked):
        talk = make(takes, says)
        try:
            talk.ask(asked)
            check(talk, asked)
        except AssertionError as error:
            pytest.fail(f"cut after {takes} bytes taken or {says} said: {error}")
        talk.finish()
        lost += talk.survivor.losses
        returned += talk.survivor.returns
    assert lost
    assert returned == lost


@pytest.mark.parametrize("flags", [FLAGS, FLAGS & ~Flag.SEND_FUA], ids=["FUA", "FUA by FLUSH"])
@pytest.mark.parametrize(("client", "link"), [(SIMPLE, SIMPLE), (EXTENDED, STRUCTURED)])
def test_no_cut_of_what_takes_several_commands_is_noticed(
    client: Framing, link: Framing, flags: Flag
) -> None:
    """Read-modify-write, and READs that are wider than what was asked for."""
    block = 512
    asked = [
        request(1, Cmd.WRITE, 10, 100, 0xA1),
        request(2, Cmd.WRITE, 1000, 600, 0xA2, CmdFlag.FUA),
        request(3, Cmd.READ, 4100, 30),
        request(4, Cmd.WRITE_ZEROES, 3000, 100),
        request(5, Cmd.FLUSH),
    ]

    def make(takes: int, says: int) -> Conversation:
        return Conversation(client, link, block=block, takes=takes, says=says, flags=int(flags))

    talk = make(ENDLESS, ENDLESS)
    talk.ask(asked)
    [first] = talk._links
    taken, said = ENDLESS - first._takes, ENDLESS - first._says
    expected = bytes(talk.disk.content)
    talk.finish()
    cuts = [(cut, ENDLESS) for cut in range(1, taken, 47)]
    cuts += [(ENDLESS, cut) for cut in range(1, said, 29)]
    for takes, says in cuts:
        talk = make(takes, says)
        talk.ask(asked)
        assert not any(reply.error for reply in talk.replies.values())
        assert talk.replies[3].data == peers.content(4100, 30)
        assert bytes(talk.disk.content) == expected, f"cut at {takes}, {says}"
        assert talk.survivor.losses == 1
        talk.finish()
    assert expected[10:110] == b"\xa1" * 100
    assert expected[1000:1600] == b"\xa2" * 600
    assert expected[3000:3100] == bytes(100)


def test_large_writes_are_kept_until_they_are_answered_and_no_longer() -> None:
    """In the buffers where they were received; and when all is answered there is none."""
    length = 3 * 2**14
    asked = [request(n, Cmd.WRITE, 0, length, n) for n in range(1, 60)]
    taken, _said = 59 * (28 + length), 0
    for takes in range(1, taken, taken // 9):
        talk = Conversation(SIMPLE, SIMPLE, takes=takes)
        for each in asked:
            talk.ask([each])
        assert not any(reply.error for reply in talk.replies.values())
        assert talk.disk.content[:length] == bytes([59]) * length
        talk.finish()


def test_sessions_that_have_written_and_are_idle_hold_no_buffer() -> None:
    many = [Conversation(SIMPLE, SIMPLE) for _ in range(50)]
    for talk in many:
        talk.ask([request(1, Cmd.WRITE, 0, 2**15, 1), request(2, Cmd.WRITE, 2**15, 100, 2)])
    assert not POOL.taken
    for talk in many:
        talk.finish()


@pytest.mark.parametrize("back_between", [False, True], ids=["down for both", "back in between"])
@pytest.mark.parametrize(("client", "link"), FRAMINGS, ids=lambda framing: str(framing))
def test_a_client_that_is_inside_a_request_when_the_link_dies(
    client: Framing, link: Framing, back_between: bool
) -> None:
    """What it had sent of a WRITE went to the old server, and its rest comes later."""
    asked = [request(1, Cmd.WRITE, 0, 96, 0xA1), request(2, Cmd.WRITE, 512, 100, 0xA2)]
    asked += [request(3, Cmd.FLUSH), request(4, Cmd.READ, 4096, 93)]
    said = b"".join(each.extended_bytes if client is EXTENDED else each.bytes for each in asked)
    for cut in range(0, len(said), 5):
        talk = Conversation(client, link, goes_back=back_between)
        sock = talk.survivor.wires.client
        for each in asked:
            talk._reader.under_way[each.cookie] = each
        sock.send(said[:cut])
        while talk.survivor.wires.step():
            pass
        talk._links[-1]._drop()
        while talk.survivor.wires.step():
            pass
        assert talk.survivor.down
        if back_between:
            talk.settle()
        sock.send(said[cut:])
        talk.ask([])
        assert not any(reply.error for reply in talk.replies.values())
        assert talk.replies[4].data == peers.content(4096, 93)
        assert talk.disk.content[:96] == b"\xa1" * 96
        assert talk.disk.content[512:612] == b"\xa2" * 100
        talk.finish()


def test_a_session_that_ends_with_writes_under_way_gives_its_buffers_back() -> None:
    talk = Conversation(SIMPLE, SIMPLE, says=1)
    asked = [request(n, Cmd.WRITE, 0, 2**15, n) for n in range(1, 4)]
    talk.survivor.wires.client.send(b"".join(each.bytes for each in asked))
    while talk.survivor.wires.step():
        pass
    assert POOL.taken, "nothing is kept"
    talk.survivor.session.cut()
    assert not POOL.taken
    memory = talk.survivor.session.traffic.memory
    assert memory is not None
    assert not memory.kept
    talk._links[0]._drop()
    talk.survivor.close()


def test_reads_that_are_asked_again_take_no_more_memory_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic_module, "MAX_JOB_BYTES", 40_000)
    talk = Conversation(SIMPLE, SIMPLE, says=1)
    asked = [request(n, Cmd.READ, n, 16_000) for n in range(1, 41)]
    for each in asked:
        talk._reader.under_way[each.cookie] = each
    talk.survivor.wires.client.send(b"".join(each.bytes for each in asked))
    while talk.survivor.wires.step():
        pass
    talk._links[-1]._drop()
    while talk.survivor.wires.step():
        pass
    traffic = talk.survivor.session.traffic
    assert talk.survivor.down
    assert traffic.jobs.bytes == 48_000  # the one that is too much is the last
    assert len(traffic.postponed) == 37
    talk.ask([])
    for n in range(1, 41):
        assert talk.replies[n].data == peers.content(n, 16_000)
    talk.finish()


def test_a_write_that_is_longer_than_all_that_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of any size is taken, to its end."""
    monkeypatch.setattr(traffic_module, "MAX_KEPT_BYTES", 10_000)
    talk = Conversation(SIMPLE, SIMPLE)
    asked = request(1, Cmd.WRITE, 0, 2**15, 7)
    talk._reader.under_way[1] = asked
    sock = talk.survivor.wires.client
    sock.send(asked.bytes[:20_000])
    while talk.survivor.wires.step():
        pass
    sock.send(asked.bytes[20_000:])
    talk.ask([request(2, Cmd.WRITE, 2**15, 2**14, 8)])
    assert not any(reply.error for reply in talk.replies.values())
    assert talk.disk.content[: 3 * 2**14] == b"\x07" * 2**15 + b"\x08" * 2**14
    talk.finish()


def test_no_flush_that_was_under_way_at_a_loss_succeeds_after_it() -> None:
    """However many there were: each was to cover what is lost."""
    export = Export(SIZE, int(FLAGS))
    made = plan(offer(view_of(export), structured=False), export)
    losses = Losses()
    debt = losses.open()
    traffic = Traffic(made, debt=debt)
    trail = losses.trail(debt)
    losses.came_up(trail)
    traffic.trail = trail
    traffic.memory = Memory(trail)
    trail.unflushed.note([(0, 10)])
    requests = RequestScan(traffic)
    said = bytearray(request(1, Cmd.FLUSH).bytes + request(2, Cmd.FLUSH).bytes)
    requests.feed(said, memoryview(said), 0, len(said), [])
    losses.died(trail, "gone")
    asked: list[Done] = []
    after = plan(made.offer, export, translated="its link was lost")
    take = lambda _ask, done: asked.append(done)  # noqa: E731 # both ways are one here
    carry_over(traffic, requests, after, take, take)
    for done in asked:
        done(Outcome())
    assert [bytes(each) for each in traffic.to_client] == [
        made.offer.framing.failure(1, 0, Errno.EIO, "gone"),
        made.offer.framing.failure(2, 0, Errno.EIO, ""),
    ]
    assert not debt.why


def test_however_many_pieces_of_a_reply_are_missing_and_lost() -> None:
    """Each is answered at once; and then the next is asked."""
    export = Export(SIZE, int(FLAGS), structured=True)
    made = plan(offer(view_of(export), structured=True), export)
    losses = Losses()
    traffic = Traffic(made, debt=losses.open())
    trail = losses.trail(None)
    losses.came_up(trail)
    trail.unflushed.note([(0, SIZE)])
    losses.lose(trail, "gone")
    traffic.in_flight[1] = 7, Cmd.READ, 0, 2**16
    covered = [(at, at + 8) for at in range(0, 2**16, 16)]
    traffic.partial[1] = Partial(covered=covered)
    take = lambda _ask, _done: pytest.fail("it is lost")  # noqa: E731 # both ways are one here
    carry_over(traffic, RequestScan(traffic), made, take, take)
    assert len(traffic.to_client) == len(covered)
