"""A client of raw bytes, for what no tool does: sit still, and never read.

It shares nothing with the gateway's own wire/, so that a mistake there cannot hide here.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterable, Iterator

from tests.bench.processes import Broken

SECONDS = 20.0

_NBDMAGIC = 0x4E42444D41474943
_IHAVEOPT = 0x49484156454F5054
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_REPLY_MAGIC = 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _SET_META_CONTEXT, _ACK, _ERROR = 7, 10, 1, 1 << 31
_READ, _DISC = 0, 2
_COMMANDS = {"READ": _READ, "BLOCK_STATUS": 7, "unknown": 99}

_GREETING = struct.Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
_OPTION = struct.Struct(">QII")  # IHAVEOPT, option, length
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
_REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
_CHUNK = struct.Struct(">IIQI")  # magic, flags and type, cookie, length
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
    """One connection to the default export, in transmission, with simple replies unless others are asked
    for."""

    def __init__(
        self, port: int, *, structured: bool = False, extended: bool = False, context: str = ""
    ) -> None:
        self._extended = extended
        self._context = context.encode()
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

    def _negotiate(self) -> None:
        magic, option_magic, _ = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, option_magic) != (_NBDMAGIC, _IHAVEOPT):
            raise Broken("this is no newstyle NBD server")
        name_length, information_requests = 0, 0
        payload = struct.pack(">IH", name_length, information_requests)
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        if self._framing is not None:
            self._ask(self._framing, b"")
        if self._context:
            name, queries = struct.pack(">I", 0), struct.pack(">II", 1, len(self._context))
            self._ask(_SET_META_CONTEXT, name + queries + self._context)
        self._ask(_GO, payload)

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


def _read_request(cookie: int, offset: int, length: int) -> bytes:
    return _REQUEST.pack(_REQUEST_MAGIC, 0, _READ, cookie, offset, length)
