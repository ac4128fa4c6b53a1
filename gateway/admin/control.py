"""The control socket: `nbd-gateway reload` and its like tell a running gateway what to do.

A Unix socket (`[control] socket`), of mode 0600; and who connects must be the gateway's own user or root,
whatever the file's mode has become (SO_PEERCRED, unix(7)).

The protocol: the client sends one line, a JSON object whose `verb` says what to do, and gets one line back, a
JSON object; then the connection is closed.

    {"verb": "reload"}
    {"ok": true, "done": ["listeners: 1 kept", "upstreams: 2 kept, 1 new"], "problems": []}
    {"ok": false, "done": [], "problems": ["gateway.toml:3: listen.uri: expected an NBD URI, ..."]}

`ok` says whether what was asked is done; `done` what that was, and `problems` what was in the way, or is left
to be seen to, each for people. Where what was asked makes no sense, whatever the gateway is doing (a key that
there is not, an argument of the wrong type or out of its range), `"misunderstood": true` is there as well. What
is asked of a gateway (`gateway.status`) is answered in `data`, in names and numbers. A client must not mind
keys that it does not know; we do, for an argument that is passed over is one that somebody relied on. Both
sides go by lines of bounded length, and bounded time.

A caller that goes before it has its answer (Ctrl-C, a session that is cut) does not know what came of it, and
nobody else does. So what is under way is cancelled, which undoes it; and what was done and can be undone, is
(`ControlAnswer.undo`). Gone means that the connection is closed, not that nothing more is sent: many a
script says its line and shuts its side down. What is done may also last only `while_connected`: then it is
undone when its caller closes the connection.

After the answer of a verb that has more to tell (`ControlAnswer.then`) come lines of JSON, until it has told
all or the caller goes.

The log has who has asked for what, for whom (`asked-by`), and what came of it (`Asked`).

Here are the gateway's end of the socket and the lines that both ends go by; who asks is in `asking`.
"""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from gateway.admin.pieces import text_of
from gateway.identity import UnixPeer
from gateway.net.listen import open_nameless, open_unix, take_clients
from gateway.net.options import peer_of
from gateway.net.socket_file import is_abstract
from gateway.plural import plural
from gateway.wire.limits import KIB, MIB

MODE = 0o600

MAX_REQUEST_BYTES = 32 * KIB
"""The longest line that is taken: a verb with an export's name of 4,096 bytes, for each of which JSON may write
six letters, and a few words more."""

MAX_ANSWER_BYTES = MIB
"""The longest line that is believed: as many problems as a configuration, which may be as long, can have."""

REQUEST_SECONDS = 5
"""How long a client may take to send its line, and to take the answer."""

MAX_CLIENTS = 16
"""How many are heard at a time. Where one more comes, whoever has sent no line for longest has to go; if all
have sent one, whoever comes is told to come again."""

MAX_TURNED_AWAY = 16
"""How many of those who may not ask, or are to come again, are given time to read that. More are hung up on."""


def _reraise(error: BaseException) -> None:
    raise error


Then = Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]]
"""Tells more after an answer: it is called with what sends whole lines."""


@dataclass(frozen=True)
class ControlAnswer:
    """What came of it."""

    ok: bool
    done: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    data: Mapping[str, Any] | None = None
    """The answer to a question, in names and numbers, for whoever shows it."""
    undo: Callable[[], Awaitable[None]] | None = field(default=None, compare=False)
    """Undoes it. None: it stays, whoever knows of it."""
    while_connected: bool = False
    """It is undone when the caller goes."""
    not_here: bool = False
    """What was asked about is not known here; another process of the gateway may know it."""
    misunderstood: bool = False
    """What was asked makes no sense, whatever the gateway is doing; nothing was done."""
    then: Then | None = field(default=None, compare=False)
    """Tells more, of what is done `while_connected`. It is cancelled when the caller goes."""


@dataclass(frozen=True)
class Asked:
    """A request, and what came of it, for the log."""

    verb: str
    arguments: Mapping[str, Any]
    by: UnixPeer
    answer: ControlAnswer | None
    """None: the caller has gone before there was one, and it was undone."""
    asked_by: str | None = None
    """On whose behalf, as who has asked says."""


MAX_PROBLEMS = 200
"""Told in one answer: nobody mends more at a time, and the line has to be short enough to be believed."""


def _line_of(answer: ControlAnswer) -> bytes:
    """Give an answer as the line that is sent."""
    more = len(answer.problems) - MAX_PROBLEMS
    if more > 0:
        told = (*answer.problems[:MAX_PROBLEMS], f"and {plural(more, 'problem')} more")
        answer = replace(answer, problems=told)
    said: dict[str, Any] = {"ok": answer.ok, "done": answer.done, "problems": answer.problems}
    if answer.misunderstood:
        said["misunderstood"] = True
    text = json.dumps(said)
    if answer.data is not None:
        text = f'{text[:-1]}, "data": {text_of(answer.data)}}}'
    return text.encode() + b"\n"


Verb = Callable[[Mapping[str, Any]], Awaitable[ControlAnswer]]
"""Does something; given are the request's other keys. Raises `Misunderstood` before anything is done."""

INTERNAL_ERROR = (
    "an internal error, and it is not known how much was done; the gateway's log has more"
)


class Misunderstood(Exception):
    """A request means nothing; the text is for whoever sent it."""


_asking: ContextVar[str] = ContextVar("asking", default="nobody")
who_asks = _asking.get
"""Says whose request is being answered, for a verb that notes who it was."""


def asking_for(who: str) -> None:
    """Have a verb that this task does be for somebody who has asked elsewhere."""
    _asking.set(who)


def no_arguments(arguments: Mapping[str, Any]) -> None:
    """Let a verb have none. Raises `Misunderstood`."""
    if arguments:
        raise Misunderstood(f"unknown keys {', '.join(sorted(arguments))}")


class ControlSocket:
    """One control socket that is open, or one that listens at a path already. Without a path it has an abstract
    name that the kernel chooses (unix(7), "autobind"), for what we have started. Raises `ListenError`.
    """

    def __init__(self, path: Path | None, listening: trio.SocketListener | None = None) -> None:
        self._verbs: Mapping[str, Verb] = {}
        self._heard: Callable[[Asked], None] = lambda _asked: None
        self._failed: Callable[[BaseException], None] = _reraise
        self._answering = 0
        self._at_work = 0
        self._turned_away = 0
        self._silent: dict[trio.CancelScope, None] = {}
        """Those that have sent no line yet, who came first before the others."""
        self.listening = listening or (open_nameless() if path is None else open_unix(path, MODE))
        self.path = path or Path(self.listening.socket.getsockname().decode())
        self._closed = False
        self.file_is_ours = True  # else another process listens there as well

    async def run(
        self,
        verbs: Mapping[str, Verb],
        clients: trio.Nursery,
        short: Callable[[int], None],
        heard: Callable[[Asked], None] = lambda _asked: None,
        failed: Callable[[BaseException], None] = _reraise,
    ) -> None:
        """Serve, each client in `clients`, until closed: who is being answered gets the answer still. `short`
        is told the errno of a shortage, `heard` of each request what came of it, `failed` of our bugs.
        """
        self._verbs = verbs
        self._heard, self._failed = heard, failed
        await take_clients(self.listening, lambda each: clients.start_soon(self.serve, each), short)

    async def aclose(self) -> None:
        """Listen no more. The file is removed, once: a second time, it might be another's."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            await self.listening.aclose()
        if self.file_is_ours and not is_abstract(str(self.path)):
            with suppress(OSError):
                self.path.unlink()

    @property
    def answering(self) -> bool:
        """Somebody waits for an answer."""
        return self._answering > 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one client. Never raises for anything that it does, nor for a bug of ours."""
        try:
            await self._serve(stream)
        except Exception as error:
            self._failed(error)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            unix = peer_of(stream.socket).unix
            if unix is None or unix.uid not in (0, os.geteuid()):
                await self._turn_away(stream, "only the gateway's own user and root may ask")
                return
            if not self._has_room():
                why = f"{MAX_CLIENTS} others are being answered, come again"
                await self._turn_away(stream, why)
                return
            self._answering += 1
            try:
                answer = await self._answer(stream, unix)
                taken = answer is not None and await _is_taken(stream, answer)
            finally:
                self._answering -= 1
            if answer is None or answer.undo is None:
                return
            if taken and answer.then is not None:
                await _tell(stream, answer.then)
            elif taken and answer.while_connected:
                await _closed(stream.socket)
            if answer.while_connected or not taken:
                await answer.undo()

    def _has_room(self) -> bool:
        """Say whether one more is heard; who has been silent for longest has to go for it."""
        if len(self._silent) + self._at_work < MAX_CLIENTS:
            return True
        if not self._silent:
            return False
        longest = next(iter(self._silent))
        del self._silent[longest]
        longest.cancel()
        return True

    async def _turn_away(self, stream: trio.SocketStream, why: str) -> None:
        if self._turned_away < MAX_TURNED_AWAY:
            self._turned_away += 1
            try:
                await _is_taken(stream, _no(why))
            finally:
                self._turned_away -= 1

    async def _first_line(self, stream: trio.SocketStream) -> bytes:
        """Receive a request. Raises `Misunderstood`, `trio.TooSlowError`, `trio.BrokenResourceError`."""
        with trio.CancelScope() as silent:
            self._silent[silent] = None
            try:
                with trio.fail_after(REQUEST_SECONDS):
                    return await line_from(stream, MAX_REQUEST_BYTES)
            finally:
                self._silent.pop(silent, None)
        raise Misunderstood("no line came, and others want to ask")

    async def _answer(self, stream: trio.SocketStream, unix: UnixPeer) -> ControlAnswer | None:
        """Do what is asked; None: who asked has gone, and it was undone."""
        try:
            request = _request(await self._first_line(stream))
            name = request.pop("verb")
            asked_by = request.pop("asked-by", None)
            verb = self._verbs.get(name)
            if verb is None:
                raise Misunderstood(f"the verbs are {', '.join(self._verbs)}")
        except trio.TooSlowError:
            return _no(f"no line came within {REQUEST_SECONDS} s")
        except Misunderstood as error:
            return _no(str(error), misunderstood=True)
        except trio.BrokenResourceError:
            return None
        _asking.set(f"process {unix.pid} of user {unix.uid}" if asked_by is None else asked_by)
        self._at_work += 1
        try:
            answer = await self._done(verb, request, stream)
        finally:
            self._at_work -= 1
        self._heard(Asked(name, request, unix, answer, asked_by))
        return answer

    async def _done(
        self, verb: Verb, arguments: Mapping[str, Any], stream: trio.SocketStream
    ) -> ControlAnswer | None:
        """Do what is asked as long as who asked is there; None: it has gone."""
        answer: ControlAnswer | None = None
        with trio.CancelScope() as asked:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await _closed(stream.socket)
                    asked.cancel()

                nursery.start_soon(watch)
                try:
                    answer = await verb(arguments)
                except Misunderstood as error:
                    answer = _no(str(error), misunderstood=True)
                except (Exception, SystemExit) as error:  # a bug, ours or a policy's
                    self._failed(error)
                    answer = _no(f"{INTERNAL_ERROR}: {error!r}")
                nursery.cancel_scope.cancel()
        return answer


def _no(problem: str, *, misunderstood: bool = False) -> ControlAnswer:
    return ControlAnswer(False, problems=(problem,), misunderstood=misunderstood)


async def line_from(stream: trio.SocketStream, most: int, behind: bytearray | None = None) -> bytes:
    """Receive a line of no more than `most` bytes: all that comes, unless `behind` takes more. Raises
    `Misunderstood`, `trio.BrokenResourceError`.
    """
    received = bytearray()
    while b"\n" not in received:
        data = await stream.receive_some(min(most + 1 - len(received), 64 * KIB))
        if not data:
            raise Misunderstood("expected a line, and the end came before its end")
        received += data
        if len(received) > most:
            raise Misunderstood(f"expected a line of no more than {most} bytes, got a longer one")
    line, _newline, more = bytes(received).partition(b"\n")
    if behind is not None:
        behind += more
    elif more:
        raise Misunderstood("expected one line, got more")
    return line


def _request(line: bytes) -> dict[str, Any]:
    """Read a request. Raises `Misunderstood`."""
    request = object_of(line)
    try:  # JSON can write half of a character, which UTF-8 cannot, and so neither NBD nor the log
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Misunderstood(f"expected UTF-8, got {error.object[error.start]!a}") from None
    if not isinstance(request.get("verb"), str) or not isinstance(request.get("asked-by", ""), str):
        raise Misunderstood('expected {"verb": "..."}, and perhaps "asked-by"')
    return request


def object_of(line: bytes) -> dict[str, Any]:
    """Give the JSON object that a line is. Raises `Misunderstood`."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise Misunderstood("expected a line of JSON, got something else") from None
    if not isinstance(found, dict):
        raise Misunderstood("expected a JSON object, got something else")
    return found


async def _is_taken(stream: trio.SocketStream, answer: ControlAnswer) -> bool:
    """Send an answer, and wait until the client has taken it (as far as is known) or has gone; say which."""
    try:
        with trio.move_on_after(REQUEST_SECONDS):
            await stream.send_all(_line_of(answer))
            if answer.while_connected:
                return True  # and is watched from now on
            await stream.send_eof()
            # With bytes of the client's own unread, the kernel would throw our answer away.
            while await stream.receive_some(64 * KIB):
                pass
    except trio.BrokenResourceError:
        return False  # closed with the answer unread (ECONNRESET), or before it was sent (EPIPE)
    return True


async def _tell(stream: trio.SocketStream, then: Then) -> None:
    """Tell what comes after an answer, as long as the client is there."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await _closed(stream.socket)
            nursery.cancel_scope.cancel()

        async def send(lines: bytes) -> None:
            try:
                await stream.send_all(lines)
            except trio.BrokenResourceError:
                await trio.sleep_forever()  # it has gone, as is seen at once

        nursery.start_soon(watch)
        await then(send)
        nursery.cancel_scope.cancel()


async def _closed(sock: trio.socket.SocketType) -> None:
    """Wait until the other side has closed a Unix socket: has shut down one direction is not enough. (An epoll
    that asks for nothing is told of EPOLLHUP alone, epoll_ctl(2); a Unix socket has it when both directions
    are shut down.)
    """
    with select.epoll() as poll:
        try:
            poll.register(sock.fileno(), 0)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return
        await trio.lowlevel.wait_readable(poll.fileno())
