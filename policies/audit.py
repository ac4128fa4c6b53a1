"""Write down who opened what when, how much was done, and what was refused: one line of JSON each.

    {"time": "2026-11-21T12:00:00.123+01:00", "event": "opened", "session": "k3wq7x-7", "export": ...}

- `opened`: a session begins. `session` is the id that the log uses, too. `who` names the client in one field;
  the fields after it have all that is known of it, one by one.
- `closed`: the session has ended. It has `seconds`, `commands`, `bytes_from_client`, `bytes_to_client`, what
  was `refused` (each command and error, and how often), and `why` if the client did not leave in good order.
  If another policy refuses a session after this one has let it in, there are all three lines: `opened`,
  `closed`, `denied`.
- `denied`: a client was not given the export, and `why`.
- `write`, with `writes = true`: a WRITE, WRITE_ZEROES or TRIM was answered. `offset` and `length` are in
  bytes of the export as this policy shows it; it also has the `flags`, and the `result`: `"ok"`, an error, or
  `"unknown"` if the session ended before. These commands are slower then.

`file` is opened for the first line. When logrotate has moved it away, it is made anew, with mode 0640; no
signal is needed. Several policies, several workers, and several gateways on one machine, may write to one
file: each line is whole, in the order in which its writer has written it. Names are the
clients' own words and may have any characters; JSON keeps each line one line, in ASCII.

A thread writes the lines, in order, so that a file that hangs does not hang the gateway. It does not sync
them. Up to 1 MiB of lines wait for a file that is slow or hangs. When there is no more room, further lines
are lost until all that wait have been written. When the gateway ends, it waits up to 1 s for the rest.

A line that cannot be written is lost. The gateway's log says how many were lost, once a minute at most.

With `required = true`, nothing happens without its line. A client is refused if `opened` cannot be written.
Each write first waits for a line `writing`; if that cannot be written, the write gets EIO and is not done.
`write`, with the result, follows as ever; it and `closed` may still be lost. A file that hangs for 5 s counts
as one that cannot be written. So a disk that is full stops all writers.

If `file` is a pipe, a line counts as written when the kernel has it, even if nobody ever reads it. Anybody
who can connect can cause lines of `denied`: have logrotate bound the size.

nbdkit's log filter logs every command; `writes` logs those that change the disk.

    policies = [ { use = "audit", file = "/var/log/nbd-gateway/audit.log", writes = true } ]
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import stat
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Self

import trio
from pydantic import PlainValidator, WithJsonSchema

from gateway.policy import (
    Client,
    Cmd,
    CmdFlag,
    Denied,
    Errno,
    Failed,
    Field,
    Identity,
    Next,
    Outcome,
    Policy,
    PrivateAttr,
    Request,
    Result,
    Scope,
    Session,
    View,
    Writer,
    unexpanded,
)

COMPLAIN_SECONDS = 60
"""How often lost lines are worth one of the gateway's log: it is the same full disk each time."""

REQUIRED_SECONDS = 5
"""How long a line that is required may take: longer than a busy disk does, shorter than clients wait for a
WRITE (Linux: 30 s)."""

_MODE = 0o640
# Read, for the last byte. Not blocked by a pipe that nobody reads.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


class _File:
    """The sink of a writer: a file by its name, and how many lines it has lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complained_at: float | None = None
        self._writer = Writer(self, f"audit {path}")
        self._lock = threading.Lock()
        self._lost = 0
        self._error: OSError | None = None
        self._fd: int | None = None
        self._inode: tuple[int, int] | None = None

    def write(self, line: bytes, outcome: Outcome | None = None) -> None:
        """Have a line appended. Never waits."""
        if not self._writer.write(line, outcome):
            error = OSError(errno.ENOBUFS, "the file hangs, or is too slow for so many lines")
            self._lose(1, error)
            if outcome is not None:
                outcome(error)

    def retire(self) -> None:
        """Let the file go whenever nothing waits to be written; the next line opens it again."""
        self._writer.retire()

    # --- In the writer's thread

    def put(self, lines: Sequence[bytes]) -> int:
        """Append lines by one system call: those of several writers do not mix."""
        try:
            return self._append(lines)
        except OSError as error:
            self._lose(len(lines), error)
            raise

    def drained(self) -> None:
        """Complain of what was lost since the last time, if that is long ago."""
        self._complain()

    def close(self) -> None:
        """Let the file go; the next line opens it again."""
        fd, self._fd, self._inode = self._fd, None, None
        if fd is not None:
            os.close(fd)

    def _append(self, lines: Sequence[bytes]) -> int:
        fd, is_file = self._open()
        if not is_file:
            lines = _not_mixing(lines)
        with _alone(fd, is_file):
            torn = is_file and _is_torn(fd)
            data = b"".join((b"\n" if torn else b"", *lines))
            written = os.write(fd, data) - torn
        if written == len(data) - torn:
            return len(lines)
        there = sum(end <= written for end in accumulate(map(len, lines)))
        if not there:
            raise OSError(errno.ENOSPC, "only a part of the line fitted")
        return there

    def _open(self) -> tuple[int, bool]:
        """Give the file that has the path's name now, and whether it is one: a pipe may be."""
        try:
            there = os.stat(self.path)  # noqa: PTH116 # text, as everything below takes it
        except FileNotFoundError:
            there = None
        if self._fd is None or there is None or (there.st_dev, there.st_ino) != self._inode:
            self.close()
            self._fd = os.open(self.path, _FLAGS, _MODE)
            there = os.fstat(self._fd)
            self._inode = there.st_dev, there.st_ino
        return self._fd, stat.S_ISREG(there.st_mode)

    # --- In any thread

    def _lose(self, count: int, error: OSError) -> None:
        with self._lock:
            self._lost += count
            self._error = error
        self._complain()

    def _complain(self) -> None:
        """Say how many lines are not there, unless that was done lately."""
        now = time.monotonic()
        with self._lock:
            lately = self.complained_at is not None and now - self.complained_at < COMPLAIN_SECONDS
            if not self._lost or lately:
                return
            lost, self._lost, self.complained_at = self._lost, 0, now
            error = str(self._error)
        import structlog  # not before it is needed: it would slow every start

        log = structlog.get_logger()
        log.error("audit lines lost", file=str(self.path), lines=lost, error=error)


def _not_mixing(lines: Sequence[bytes]) -> Sequence[bytes]:
    """Give as many of the first lines as a pipe takes in one piece (pipe(7), PIPE_BUF), or the first."""
    fitting = sum(end <= select.PIPE_BUF for end in accumulate(map(len, lines)))
    return lines[: max(1, fitting)]


def _is_torn(fd: int) -> bool:
    """Say whether the last line has no end: a full disk has left a part of one, ours or another writer's."""
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"


@contextmanager
def _alone(fd: int, is_file: bool) -> Iterator[None]:
    """Keep other writers off a file meanwhile: a line that one of them has half written looks torn. If one is
    stopped right then, that is a file that hangs.
    """
    if is_file:
        with suppress(OSError):  # this file system has no locks
            fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if is_file:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)


class _Log:
    """The file of now, and who is here."""

    def __init__(self, path: Path) -> None:
        self.file = _File(path)
        self.opened_at: dict[Session, float] = {}
        """In seconds of `time.monotonic`."""

    def go_on_in(self, path: Path) -> None:
        """Write what comes from now on into the file of this name."""
        if path != self.file.path:
            self.file.retire()
            self.file = _File(path)


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"expected a path, got {value!r}")
    return Path(value)


class Audit(Policy):
    """`use = "audit"`."""

    file: Annotated[
        Path, PlainValidator(_path), WithJsonSchema({"type": "string", "title": "path"})
    ] = Field(description="Where the lines go.")
    writes: bool = Field(False, description="Also a line for every WRITE, WRITE_ZEROES and TRIM.")
    required: bool = Field(False, description="Nothing happens whose line cannot be written.")

    # Sessions leave the instance that they joined, so it and its successors have the same log.
    _log: _Log = PrivateAttr()
    _session: Session | None = PrivateAttr(None)
    """Whose commands come here."""
    _opened: Outcome | None = PrivateAttr(None)
    """Whether the line is there without which it may not go on."""

    def model_post_init(self, context: object) -> None:
        """Know the file; it is opened by the first line, for `check` opens nothing."""
        self._log = _Log(self.file)

    def lacks(self) -> Iterator[str]:
        """Say why the first line could not be written."""
        try:
            place = self.file if self.file.exists() else self.file.parent
            if place != self.file and not place.is_dir():
                yield f"there is no directory {place}{unexpanded(self.file)}"
            elif self.file.is_dir():
                yield f"{self.file} is a directory"
            elif not os.access(place, os.W_OK):
                yield f"{place} cannot be written"
        except OSError as error:
            yield f"{self.file}: {error.strerror}"

    def remembers(self) -> Scope:
        """Each session by itself: several processes may write to one file."""
        return "session"

    def join(self, session: Session) -> Policy:
        """Say who has come. A session's writes come to a copy that knows whose they are."""
        identity, opened = session.client.identity, Outcome() if self.required else None
        said = _of(session) | {"who": identity.describe()} | _known(identity)
        self._say("opened", said, opened)
        self._log.opened_at[session] = time.monotonic()
        if not self.writes and not self.required:
            return self
        copy = self.model_copy()
        copy._session, copy._opened = session, opened
        return copy

    def prepares(self) -> bool:
        """Only a session waits, for the line that says so; who asks what it would get has none."""
        return self._opened is not None

    async def prepare(self, view: View, next: Next) -> Policy:
        """Wait until it is written who has come."""
        if self._opened is not None:
            try:
                with trio.fail_after(REQUIRED_SECONDS):
                    await self._opened.wait()
            except (OSError, trio.TooSlowError):
                raise Denied("the audit log cannot be written") from None
            self._opened = None
        return self

    def leave(self, session: Session) -> None:
        """Say what it did."""
        seconds = time.monotonic() - self._log.opened_at.pop(session)
        said = _of(session) | {
            "who": session.client.identity.describe(),
            "seconds": round(seconds, 3),
            "commands": session.commands,
            "bytes_from_client": session.bytes_from_client,
            "bytes_to_client": session.bytes_to_client,
            "refused": {" ".join(what): times for what, times in session.refused.items()},
        }
        self._say("closed", said | ({"why": session.why} if session.why else {}))

    def denied(self, client: Client, export: str, why: str) -> None:
        """Say who was turned away."""
        who = client.identity.describe()
        self._say("denied", {"export": export, "who": who} | _known(client.identity) | {"why": why})

    def hooked(self, view: View) -> Collection[Cmd]:
        """Commands take hooks only if they are written down."""
        return (Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM) if self.writes else ()

    async def write(self, request: Request, next: Next) -> Result:
        """Do a WRITE, and write it down."""
        return await self._audited(request, next)

    async def zero(self, request: Request, next: Next) -> Result:
        """Do a WRITE_ZEROES, and write it down."""
        return await self._audited(request, next)

    async def trim(self, request: Request, next: Next) -> Result:
        """Do a TRIM, and write it down."""
        return await self._audited(request, next)

    async def _audited(self, request: Request, next: Next) -> Result:
        what = {
            **({} if self._session is None else _of(self._session)),
            "command": request.command.name,
            "offset": request.offset,
            "length": request.length,
            "flags": [flag.name for flag in CmdFlag if request.has(flag)],
        }
        if self.required:
            await self._announce(what, request)
        ended = "unknown"
        try:
            result: Result = await next(request)
            ended = "ok"
        except Failed as failed:
            ended = failed.error.name
            raise
        finally:
            self._say("write", what | {"result": ended})
        return result

    async def _announce(self, what: dict[str, Any], request: Request) -> None:
        """Wait until it is written what comes. Raises `Failed`."""
        outcome = Outcome()
        self._say("writing", what, outcome)
        failed = Failed(Errno.EIO, "the audit log cannot be written", request.offset)
        try:
            with trio.fail_after(REQUIRED_SECONDS):
                await outcome.wait()
        except OSError:
            raise failed from None
        except trio.TooSlowError:  # it may be there later
            self._say("write", what | {"result": failed.error.name})
            raise failed from None
        except trio.Cancelled:
            self._say("write", what | {"result": "unknown"})
            raise

    def inherit(self, before: Self) -> None:
        """Go on with those who are here, in the file of now."""
        self._log = before._log
        self._log.go_on_in(self.file)

    def retire(self) -> None:
        """Keep no file open for those who are still here."""
        self._log.file.retire()

    def _say(self, event: str, said: dict[str, Any], outcome: Outcome | None = None) -> None:
        """Have a line written; `outcome` learns whether it is there."""
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | said) + "\n"
        self._log.file.write(line.encode(), outcome)


def _of(session: Session) -> dict[str, Any]:
    return {"session": session.client.id, "export": session.export}


def _known(identity: Identity) -> dict[str, Any]:
    """Give what is known of a client, as JSON has it."""
    return dict(_facts(identity))


def _facts(identity: Identity) -> Iterator[tuple[str, Any]]:
    for each in fields(identity):
        value = getattr(identity, each.name)
        if each.name == "unix" and value is not None:
            yield "unix", {"pid": value.pid, "uid": value.uid, "gid": value.gid}
        elif each.name == "address" and value is not None:
            yield "address", str(value)
        elif value not in (None, "", ()):
            yield each.name, value
