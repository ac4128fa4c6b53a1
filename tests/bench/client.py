"""A client of raw bytes, for what no tool does: sit still, never read, and be a thousand at a time.

It shares nothing with the gateway's own wire/, so that a mistake there cannot hide here.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from tests.bench.processes import Broken

SECONDS = 20.0

_NBDMAGIC = 0x4E42444D41474943
_IHAVEOPT = 0x49484156454F5054
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_REPLY_MAGIC = 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _SET_META_CONTEXT, _ACK, _ERROR = 7, 10, 1, 1 << 31
_READ, _WRITE, _DISC = 0, 1, 2
_COMMANDS = {"READ": _READ, "WRITE": _WRITE, "BLOCK_STATUS": 7, "unknown": 99}

_GREETING = struct.Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
_OPTION = struct.Struct(">QII")  # IHAVEOPT, option, length
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
_REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
_CHUNK = struct.Struct(">IIQI")  # magic, flags and type, cookie, length
_CHUNK_MAGIC = 0x668E33EF
_EXTENDED_REQUEST = struct.Struct(">IIQQQ")  # magic, flags and command, cookie, offset, length
_EXTENDED_CHUNK = struct.Struct(">IIQQQ")  # magic, flags and type, cookie, offset, length
_EXTENDED_REQUEST_MAGIC = 0x21E41C71
_STRUCTURED_REPLY, _EXTENDED_HEADERS = 8, 11
_ERROR_CHUNK = 1 << 15
_SIMPLE_REPLY = struct.Struct(">IIQ")  # magic, error, cookie

_ONE_REPLY_SECONDS = 0.2
"""Within this all of one reply has come, of a server that has nothing else to do yet."""

_MOST_RECEIVED = 256 * 1024


class Session:
    """One connection to an export, the default one unless another is named, in transmission, with simple
    replies unless others are asked for.
    """

    def __init__(
        self,
        port: int,
        *,
        structured: bool = False,
        extended: bool = False,
        context: str = "",
        name: str = "",
    ) -> None:
        self._extended = extended
        self._context = context.encode()
        self._name = name.encode()
        self._framing = _EXTENDED_HEADERS if extended else _STRUCTURED_REPLY if structured else None
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._negotiate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hangs up without a word."""
        self._socket.close()

    def ask_reads(self, count: int, length: int, disk_bytes: int) -> None:
        """Asks for `count` pieces, one after the other, and leaves the replies where they are."""
        self._socket.sendall(
            b"".join(_read_request(i, i * length % disk_bytes, length) for i in range(count))
        )

    def read(self, offset: int, length: int) -> bytes:
        """One READ, answered."""
        self._socket.sendall(_read_request(1, offset, length))
        magic, error, cookie = _SIMPLE_REPLY.unpack(self._receive(_SIMPLE_REPLY.size))
        if (magic, error, cookie) != (_SIMPLE_REPLY_MAGIC, 0, 1):
            raise Broken(f"READ was answered {magic:#x}, error {error}, cookie {cookie}")
        return self._receive(length)

    def answer(self, request: bytes) -> bytes:
        """The whole reply to one request, in structured replies or simple ones without data. Raises `Broken`
        if it is an error.
        """
        self._socket.sendall(request)
        head = self._receive(_SIMPLE_REPLY.size)
        magic, word, _ = _SIMPLE_REPLY.unpack(head)
        if magic == _SIMPLE_REPLY_MAGIC and not word:
            return head
        head += self._receive(_CHUNK.size - len(head))
        magic, word, _, length = _CHUNK.unpack(head)
        if magic != _CHUNK_MAGIC or word & _ERROR_CHUNK or not word >> 16:  # DONE
            raise Broken(f"expected one chunk that is no error, got {head.hex()}")
        return head + self._receive(length)

    def _negotiate(self) -> None:
        magic, option_magic, _ = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, option_magic) != (_NBDMAGIC, _IHAVEOPT):
            raise Broken("this is no newstyle NBD server")
        name = struct.pack(">I", len(self._name)) + self._name
        information_requests = struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        if self._framing is not None:
            self._ask(self._framing, b"")
        if self._context:
            queries = struct.pack(">II", 1, len(self._context))
            self._ask(_SET_META_CONTEXT, name + queries + self._context)
        self._ask(_GO, name + information_requests)

    def _ask(self, option: int, payload: bytes) -> None:
        self._socket.sendall(_OPTION.pack(_IHAVEOPT, option, len(payload)) + payload)
        kind = None
        while kind != _ACK:
            magic, _, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            text = self._receive(length)
            if magic != _OPTION_REPLY_MAGIC or kind & _ERROR:
                raise Broken(f"option {option} was answered {kind:#x}: {text!r}")

    def pump(self, length: int, depth: int, disk_bytes: int, seconds: float) -> float:
        """READs of `length` at random places, `depth` at a time; gives how many a second were answered."""
        head = _EXTENDED_CHUNK if self._extended else _CHUNK
        request = self._extended_request if self._extended else _read_request
        places = [random.randrange(disk_bytes // length) * length for _ in range(1024)]
        buffer = bytearray(2 * (length + 64) * depth)
        view = memoryview(buffer)
        asked = answered = end = 0
        outstanding = 0
        began = time.perf_counter()
        until = began + seconds
        while outstanding or time.perf_counter() < until:
            if time.perf_counter() < until:
                fresh = range(asked, asked + depth - outstanding)
                if fresh:
                    self._socket.sendall(
                        b"".join(request(i, places[i % 1024], length) for i in fresh)
                    )
                asked, outstanding = fresh.stop, depth
            count = self._socket.recv_into(view[end:])
            if not count:
                raise Broken("the connection ended while replies were awaited")
            end += count
            at = 0
            while end - at >= head.size:
                fields = head.unpack_from(buffer, at)
                behind = at + head.size + fields[-1]
                if behind > end:
                    break
                if fields[1] & _ERROR_CHUNK:
                    raise Broken("a READ was answered with an error")
                if fields[1] >> 16:  # DONE
                    answered += 1
                    outstanding -= 1
                at = behind
            view[: end - at] = view[at:end]
            end -= at
        return answered / (time.perf_counter() - began)

    @staticmethod
    def requests(command: str, ranges: Iterable[tuple[int, int]]) -> bytes:
        """Requests for these offsets and lengths, as they are sent."""
        return b"".join(
            _REQUEST.pack(_REQUEST_MAGIC, 0, _COMMANDS[command], number, offset, length)
            for number, (offset, length) in enumerate(ranges)
        )

    def flood(self, requests: bytes, count: int, seconds: float) -> Iterator[None]:
        """Sends these `count` requests again and again, two times of them under way; yields each time that they
        have been answered, however they were. After `seconds` what is under way is taken, and left in good
        order. All replies have to be as long as the first one.
        """
        self._socket.sendall(requests[: _REQUEST.size])
        time.sleep(_ONE_REPLY_SECONDS)
        awaited = count * len(self._socket.recv(_MOST_RECEIVED))
        self._socket.sendall(requests)
        until, came = time.monotonic() + seconds, 0
        goes_on = True
        while goes_on:
            goes_on = time.monotonic() < until
            if goes_on:
                self._socket.sendall(requests)
            while came < awaited:
                data = self._socket.recv(_MOST_RECEIVED)
                if not data:
                    raise Broken("the connection ended in a flood")
                came += len(data)
            came -= awaited
            yield
        self.leave()

    def leave(self) -> None:
        """Says goodbye, where nothing is under way, and hangs up."""
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISC, 0, 0, 0))
        self.close()

    @staticmethod
    def _extended_request(cookie: int, offset: int, length: int) -> bytes:
        return _EXTENDED_REQUEST.pack(_EXTENDED_REQUEST_MAGIC, _READ, cookie, offset, length)

    def _receive(self, length: int) -> bytes:
        data = self._socket.recv(length, socket.MSG_WAITALL)
        while len(data) < length:
            more = self._socket.recv(length - len(data), socket.MSG_WAITALL)
            if not more:
                raise Broken("the connection ended in the middle of a message")
            data += more
        return data


def at_depth_one(
    sessions: Sequence[Session], requests: Sequence[bytes], until: Callable[[int], bool]
) -> int:
    """Each session sends its request as soon as the one before is answered, until `until` says that so many
    answers are enough; then all are awaited. Gives how many there were. Every reply has to be as the session's
    first one.
    """
    first = [one.answer(request) for one, request in zip(sessions, requests, strict=True)]
    buffer = bytearray(max(map(len, first)))
    view = memoryview(buffer)
    sockets = {one._socket.fileno(): one._socket for one in sessions}
    request_of = dict(zip(sockets, requests, strict=True))
    heads = {fd: reply[: _SIMPLE_REPLY.size] for fd, reply in zip(sockets, first, strict=True)}
    lengths = dict(zip(sockets, map(len, first), strict=True))
    missing = dict(lengths)
    answered, under_way, goes_on = 0, len(sessions), True
    with select.epoll() as ready:
        for fd, one in sockets.items():
            ready.register(fd, select.EPOLLIN)
            one.sendall(request_of[fd])
        while under_way:
            events = ready.poll(SECONDS)
            if not events:
                raise Broken(f"{under_way} replies have not come in {SECONDS:g} s")
            goes_on = goes_on and not until(answered)
            for fd, _ in events:
                count = sockets[fd].recv_into(view, missing[fd])
                if not count:
                    raise Broken("the connection ended while a reply was awaited")
                head = heads[fd]
                if missing[fd] == lengths[fd] and buffer[: min(count, len(head))] != head[:count]:
                    raise Broken(f"expected a reply like {head.hex()}, got {buffer[:16].hex()}")
                missing[fd] -= count
                if missing[fd]:
                    continue
                answered += 1
                missing[fd] = lengths[fd]
                if goes_on:
                    sockets[fd].sendall(request_of[fd])
                else:
                    under_way -= 1
    return answered


def _read_request(cookie: int, offset: int, length: int) -> bytes:
    return _REQUEST.pack(_REQUEST_MAGIC, 0, _READ, cookie, offset, length)
