"""A `TlsSocket` keeps what a non-blocking socket promises, and leaves nothing inside that could be read."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme

from gateway.net.options import plain_socket
from gateway.net.secure import RECEIVE_BYTES, TlsStream
from gateway.net.secure_socket import (
    JOIN_BYTES,
    MAX_EMPTY_BYTES,
    MOST_ANSWERS_BYTES,
    PIECE_BYTES,
    TlsSocket,
    _batches,
)
from gateway.tls.session import TlsSession
from tests.net.forger import ALERT, CLOSE_NOTIFY, DATA, Forger


@dataclass
class Pair:
    """Ours, over TLS, and the other side, which is encrypted by hand."""

    ours: TlsSocket
    far: ssl.SSLObject
    far_incoming: ssl.MemoryBIO
    far_outgoing: ssl.MemoryBIO
    near_socket: socket.socket
    far_socket: socket.socket
    forger: Forger
    """What the other side sends instead of it, once this was used."""

    def fill(self) -> int:
        """Send zeros until the kernel takes no more; give how many it took."""
        taken, blob = 0, bytes(4 << 20)
        with suppress(BlockingIOError):
            while True:
                taken += self.ours.send(blob[taken:])
        return taken

    def far_sends(self, data: bytes) -> bytes:
        """Encrypt; give the ciphertext."""
        self.far.write(data)
        return self.far_outgoing.read()

    def far_receives(self) -> bytes:
        """Decrypt all that is there."""
        with suppress(BlockingIOError):
            while data := self.far_socket.recv(1 << 20):
                self.far_incoming.write(data)
        read = b""
        with suppress(ssl.SSLWantReadError):
            while piece := self.far.read(1 << 20):
                read += piece
        return read


@pytest.fixture(scope="module")
def contexts(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ca = trustme.CA()
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    server.num_tickets = 0
    ca.issue_cert("localhost").configure_cert(server)
    ca.configure_trust(client)
    client.keylog_filename = str(tmp_path_factory.mktemp("keys") / "log")
    return server, client


@pytest.fixture
def pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Pair]:
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    c, d = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = contexts[0].wrap_bio(a, b, server_side=True)
    far = contexts[1].wrap_bio(c, d, server_hostname="localhost")
    for _ in range(3):
        for side, out, to in ((far, d, a), (near, b, c)):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
            to.write(out.read())
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    try:
        forger = Forger.of(Path(contexts[1].keylog_filename))
        yield Pair(TlsSocket(one, near, a, b), far, c, d, one, other, forger)
    finally:
        one.close()
        other.close()


def received(ours: TlsSocket, room: int) -> bytes | None:
    """One receive into so much room; None if there was nothing."""
    buffer = bytearray(room)
    try:
        return bytes(buffer[: ours.recv_into(buffer)])
    except BlockingIOError:
        return None


def kernel_has(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_could_be_read_is_left_inside(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(300_000)
    ciphertext, at = b"", 0
    while at < len(data):
        piece = data[at : at + rng.choice([1, 28, 4096, 16_384, 60_000])]
        ciphertext += pair.far_sends(piece)
        at += len(piece)
    got = b""
    while ciphertext or kernel_has(pair.near_socket):
        cut = rng.choice([1, 5, 1000, 20_000, 100_000])
        ciphertext = ciphertext[pair.far_socket.send(ciphertext[:cut]) :]
        while kernel_has(pair.near_socket):  # as the epoll would say
            got += received(pair.ours, rng.choice([32_768, 65_536, 1 << 20])) or b""
    assert got == data


@pytest.mark.parametrize("seed", range(20))
def test_what_is_sent_arrives_once_and_in_order(pair: Pair, seed: int) -> None:
    """The caller comes again with what was not taken, as a lane does."""
    rng = random.Random(seed)
    slices = [rng.randbytes(rng.choice([1, 20, 4096, 70_000, 300_000])) for _ in range(20)]
    data = b"".join(slices)
    left: list[bytes | memoryview] = [*slices]
    got, sent = b"", 0
    while left:
        try:
            count = pair.ours.sendmsg(left) if rng.random() < 0.7 else pair.ours.send(left[0])
        except BlockingIOError:
            got += pair.far_receives()
            continue
        sent += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = memoryview(left[0])[count:]
        if rng.random() < 0.3:
            left.append(more := rng.randbytes(10))
            data += more
            if len(data) > 3_000_000:
                break
    while len(got) < sent:
        got += pair.far_receives()
    assert got == data[: len(got)]
    assert len(got) >= sent


def test_bytes_without_data_are_ended(pair: Pair) -> None:
    """Key updates cost much and bring nothing. Small requests bring enough."""
    for _ in range(3000):
        pair.far_socket.send(pair.far_sends(bytes(28)))
        assert received(pair.ours, 1 << 20) == bytes(28)
    pair.ours._empty = MAX_EMPTY_BYTES  # as key updates would have it
    pair.far_socket.send(pair.far_sends(b"x"))
    with pytest.raises(OSError, match="hardly any data"):
        received(pair.ours, 65_536)


def test_both_ways_to_end(pair: Pair) -> None:
    pair.far_socket.send(pair.far_sends(b"last"))
    with suppress(ssl.SSLWantReadError):
        pair.far.unwrap()
    pair.far_socket.send(pair.far_outgoing.read())
    assert received(pair.ours, 65_536) == b"last"
    # The kernel says that there is something to read, though the other side has closed nothing but TLS.
    assert pair.near_socket.recv(1, socket.MSG_PEEK) == b""
    assert received(pair.ours, 65_536) == b""


def test_an_end_without_close_notify(pair: Pair) -> None:
    pair.far_socket.send(pair.far_sends(b"last"))
    pair.far_socket.close()
    assert received(pair.ours, 65_536) == b"last"
    assert received(pair.ours, 65_536) == b""


def test_garbage_is_an_oserror(pair: Pair) -> None:
    pair.far_socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    # OpenSSL 3.2 has put a word of its own over the one for a MAC.
    said = "record layer" if ssl.OPENSSL_VERSION_INFO >= (3, 2) else "mac|decrypt"
    with pytest.raises(OSError, match=f"(?i){said}"):
        received(pair.ours, 65_536)


def test_a_key_update_is_answered(pair: Pair) -> None:
    pair.far_socket.send(pair.forger.key_update() + pair.forger.record(DATA, b"behind it"))
    assert received(pair.ours, 65_536) == b"behind it"
    assert pair.ours.send(b"reply") == 5
    assert pair.far_receives() == b"reply"  # behind the answer, with the new key


def test_a_key_update_while_nothing_can_be_sent(pair: Pair) -> None:
    """Its answer goes behind what is encrypted already."""
    sent = pair.fill()
    for _ in range(3):
        pair.far_socket.send(pair.forger.key_update() + pair.forger.record(DATA, b"more"))
        assert received(pair.ours, 65_536) == b"more"
    rest = bytes(4 << 20)[sent:] + b"end"
    got = b""
    while rest:
        got += pair.far_receives()
        with suppress(BlockingIOError):
            rest = rest[pair.ours.send(rest) :]
    got += pair.far_receives()
    assert got == bytes(4 << 20) + b"end"


def test_answers_to_key_updates_are_not_heaped_up(pair: Pair) -> None:
    pair.fill()
    for _ in range(MOST_ANSWERS_BYTES // 100):  # an answer has less than 50 bytes
        pair.far_socket.send(pair.forger.key_update())
        assert received(pair.ours, 65_536) is None
    with pytest.raises(OSError, match="more key updates than answers"):
        _receive_key_updates(pair, MOST_ANSWERS_BYTES // 20)


def _receive_key_updates(pair: Pair, count: int) -> None:
    for _ in range(count):
        pair.far_socket.send(pair.forger.key_update())
        received(pair.ours, 65_536)


def test_answers_are_sent_where_there_was_nothing_to_read(pair: Pair) -> None:
    pair.ours._outgoing.write(b"an answer")
    pair.far_socket.send(pair.far_sends(b"half of a record")[:-3])
    assert received(pair.ours, 65_536) is None
    assert pair.far_socket.recv(1 << 16) == b"an answer"


def test_key_updates_as_many_as_like_to_where_the_answers_are_taken(pair: Pair) -> None:
    for _ in range(MOST_ANSWERS_BYTES // 20):
        pair.far_socket.send(pair.forger.key_update())
        assert received(pair.ours, 65_536) is None
        assert pair.far_receives() == b""
    assert pair.ours.send(b"x") == 1
    assert pair.far_receives() == b"x"


def test_who_has_said_goodbye_may_still_be_answered(pair: Pair) -> None:
    pair.far_socket.send(pair.forger.record(ALERT, CLOSE_NOTIFY))
    assert received(pair.ours, 65_536) == b""
    assert pair.ours.sendmsg([b"last ", b"answer"]) == 11
    assert pair.far_receives() == b"last answer"


def test_a_truncated_record_is_an_end(pair: Pair) -> None:
    """What of it came is not given to anybody."""
    pair.far_socket.send(pair.far_sends(b"whole") + pair.far_sends(b"half")[:-1])
    pair.far_socket.close()
    assert received(pair.ours, 65_536) == b"whole"
    assert received(pair.ours, 65_536) == b""


def test_the_other_side_has_gone(pair: Pair) -> None:
    pair.far_socket.close()
    with pytest.raises(BrokenPipeError):
        pair.ours.send(b"anybody there?")
    pair.ours.close()


def test_no_room_for_a_record_is_no_end(pair: Pair) -> None:
    pair.far_socket.send(pair.far_sends(b"x"))
    assert received(pair.ours, 18_000) is None
    assert received(pair.ours, 20_000) == b"x"


def test_closing_says_so_in_tls(pair: Pair) -> None:
    pair.ours.close()
    pair.ours.close()
    pair.far_incoming.write(pair.far_socket.recv(1 << 16))
    assert pair.far.read(1) == b""


def test_half_a_record_is_not_followed_by_a_goodbye(pair: Pair) -> None:
    """It would be taken for the rest of it."""
    pair.fill()
    assert not set(pair.far_receives()) - {0}
    pair.ours.close()  # there is room for a goodbye now
    assert pair.far_socket.recv(1) == b""


@pytest.mark.parametrize("skip", [0, 1, 19, 20, 21, 5000, PIECE_BYTES, PIECE_BYTES + 21])
def test_batches(skip: int) -> None:
    slices = [b"h" * 20, b"p" * (PIECE_BYTES + 3000), b"", b"q" * 7, b"r" * 3 * PIECE_BYTES, b"s"]
    batches = list(_batches(slices, skip, JOIN_BYTES))
    assert b"".join(piece for batch in batches for piece in batch) == b"".join(slices)[skip:]
    assert {sum(map(len, batch)) for batch in batches[:-1]} == {PIECE_BYTES}
    assert all(len(piece) for batch in batches for piece in batch)
    assert sum(map(len, batches)) <= len(batches) + 2 * len(slices)


def test_small_slices_are_one_piece() -> None:
    assert [len(batch) for batch in _batches([b"h" * 20, b"p" * 4096] * 30, 5, JOIN_BYTES)] == [1]


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@asynccontextmanager
async def streams(
    contexts: Contexts,
) -> AsyncIterator[tuple[TlsStream, trio.SSLStream[trio.SocketStream]]]:
    """Our end, and the other side's."""
    near, far = (
        trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair()
    )
    theirs = trio.SSLStream(far, contexts[1], server_hostname="localhost")
    session = TlsSession(contexts[0], server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.do_handshake)
        ours, _admitted = await TlsStream.accept(
            near, lambda received: session if received else None
        )
    yield ours, theirs
    await ours.aclose()
    await trio.aclose_forcefully(theirs)


@pytest.mark.parametrize("notify", [True, False])
async def test_who_leaves_is_seen_to(contexts: Contexts, notify: bool) -> None:
    async with streams(contexts) as (ours, theirs):
        assert not ours.has_left()
        await (theirs if notify else theirs.transport_stream).aclose()
        assert ours.has_left()
        assert ours.has_left()
        assert await ours.receive_some() == b""


@pytest.mark.parametrize("size", [1, 5000, 3 * RECEIVE_BYTES])
async def test_who_has_said_something_before_is_heard_first(contexts: Contexts, size: int) -> None:
    said = random.Random(size).randbytes(size)
    async with streams(contexts) as (ours, theirs):
        await theirs.send_all(said)
        await theirs.aclose()
        heard = b""
        while not ours.has_left():
            heard += await ours.receive_some(1000)
        assert heard == said


async def test_what_was_found_by_looking_goes_to_the_hub_as_well(contexts: Contexts) -> None:
    async with streams(contexts) as (ours, theirs):
        await theirs.send_all(b"first")
        assert not ours.has_left()
        await theirs.send_all(b" second")
        secure, data = ours.into_socket()
        while len(data) < 12:
            await trio.lowlevel.wait_readable(secure.fileno())
            data += received(secure, 1 << 17) or b""
        secure.close()
        assert data == b"first second"


async def test_nonsense_is_no_presence(contexts: Contexts) -> None:
    async with streams(contexts) as (ours, theirs):
        await theirs.transport_stream.send_all(b"no TLS at all")
        assert ours.has_left()


async def test_who_sends_without_saying_anything_is_not_looked_at_for_ever(
    contexts: Contexts,
) -> None:
    async with streams(contexts) as (ours, theirs):
        forger = Forger.of(Path(contexts[1].keylog_filename))
        updates = b"".join(forger.key_update() for _ in range(2 * MAX_EMPTY_BYTES // 27))
        await theirs.transport_stream.send_all(updates)
        assert not ours.has_left()
        with plain_socket(ours.say_goodbye()) as near:
            assert kernel_has(near)
