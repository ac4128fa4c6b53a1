"""Write down who opened what when, how much was done, and what was refused: one line of JSON each.

    {"time": "2026-11-21T12:00:00.123+01:00", "event": "opened", "session": 7, "export": "vm-1", "who": ...}

- `opened`: a session begins. `who` is the client in one field; all that is known of it follows, each by
  itself.
- `closed`: it has ended: `seconds`, `commands`, `bytes_from_client`, `bytes_to_client`, what was `refused`
  (command and error, how often), and `why` if the client did not leave in good order. A session that another
  policy refuses after this one is opened, closed at once, and denied.
- `denied`: a client was not given the export, and `why`.
- `write`, with `writes = true`: each WRITE, WRITE_ZEROES and TRIM, when it is answered. `offset` and `length`
  are in bytes of the export as this policy shows it; `flags`; and the `result`: `"ok"`, an error, or
  `"unknown"` if the session ended before. These commands take a hook then, which costs speed.

`file` is opened by the first line, and made anew, with mode 0640, when logrotate has moved it away; no signal
is needed. Several policies, and several gateways on one machine, may write to one file. Names are the
clients' own words and may have any characters; JSON keeps each line one line, in ASCII.

A line that cannot be written is lost, and the gateway's log says so, once a minute at most. With `required =
true`, a client is refused whose line cannot be written; and a write gets EIO and is not done. For that, a
line `writing` comes before each, and `write` follows all the same, with the result; it and `closed` may be
lost. Beware of the disk that fills up: it stops all writers then.

Lines are handed to the kernel as they come up, and not synced. A local file is fast enough for that; do not
put it on a network file system, for one that hangs would hang the gateway. Of a pipe, a line counts as written
when the kernel has it, whether or not anybody reads it ever. Anybody who can connect can cause
lines of `denied`: let logrotate look at the size.

nbdkit's log filter logs every command; `writes` is those of them that change something.

    policies = [ { use = "audit", file = "/var/log/nbd-gateway/audit.log", writes = true } ]
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

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
    Policy,
    PrivateAttr,
    Request,
    Result,
    Session,
    View,
)

COMPLAIN_SECONDS = 60
"""How often a lost line is worth one of the gateway's log: it is the same full disk each time."""

_MODE = 0o640
# Read, for the last byte. Not blocked by a pipe that nobody reads.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass
class _Log:
    """The file, and who is here. `OSError` from `write` if the line is not there."""

    path: Path
    opened_at: dict[Session, float] = field(default_factory=dict)
    """In seconds of `time.monotonic`."""
    lost: int = 0
    """Lines since the last complaint."""
    complained_at: float | None = None
    kept: bool = True
    """The file stays open from one line to the next."""
    _fd: int | None = None
    _inode: tuple[int, int] | None = None

    def write(self, line: bytes) -> None:
        """Append it by one system call: lines of several writers do not mix."""
        try:
            fd, torn = self._open()
            line = b"\n" + line if torn else line
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, "only a part of the line fitted")
        finally:
            if not self.kept:
                self.close()

    def close(self) -> None:
        """Let the file go; the next line opens it again."""
        fd, self._fd, self._inode = self._fd, None, None
        if fd is not None:
            os.close(fd)

    def lose(self, error: OSError) -> None:
        """Complain of a line that is not there, unless that was done lately."""
        import structlog  # not before it is needed: it would slow every start

        self.lost += 1
        now = time.monotonic()
        if self.complained_at is None or now - self.complained_at >= COMPLAIN_SECONDS:
            log = structlog.get_logger()
            log.error("audit lines lost", file=str(self.path), lines=self.lost, error=str(error))
            self.lost, self.complained_at = 0, now

    def _open(self) -> tuple[int, bool]:
        """Give the file that has the path's name now, and whether its last line has no end: a full disk has
        left a part of one, ours or another writer's.
        """
        try:
            there = os.stat(self.path)  # noqa: PTH116 # text, as everything below takes it
        except FileNotFoundError:
            there = None
        if self._fd is None or there is None or (there.st_dev, there.st_ino) != self._inode:
            self.close()
            self._fd = os.open(self.path, _FLAGS, _MODE)
            there = os.fstat(self._fd)
            self._inode = there.st_dev, there.st_ino
        size = there.st_size
        return self._fd, size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"


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
    writes: bool = Field(False, description="Every WRITE, WRITE_ZEROES and TRIM, too.")
    required: bool = Field(False, description="Nothing happens whose line cannot be written.")

    # Sessions leave the instance that they joined, so it and its successors have the same log.
    _log: _Log = PrivateAttr()
    _session: Session | None = PrivateAttr(None)
    """Whose commands come here."""

    def model_post_init(self, context: object) -> None:
        """Know the file; it is opened by the first line, for `check` opens nothing."""
        self._log = _Log(self.file)

    def join(self, session: Session) -> Policy:
        """Say who has come. A session's writes come to a copy that knows whose they are."""
        identity = session.client.identity
        said = self._say("opened", **_of(session), who=identity.describe(), **_known(identity))
        if not said and self.required:
            raise Denied("the audit log cannot be written")
        self._log.opened_at[session] = time.monotonic()
        if not self.writes:
            return self
        copy = self.model_copy()
        copy._session = session
        return copy

    def leave(self, session: Session) -> None:
        """Say what it did."""
        seconds = time.monotonic() - self._log.opened_at.pop(session)
        self._say(
            "closed",
            **_of(session),
            who=session.client.identity.describe(),
            seconds=round(seconds, 3),
            commands=session.commands,
            bytes_from_client=session.bytes_from_client,
            bytes_to_client=session.bytes_to_client,
            refused={" ".join(what): times for what, times in session.refused.items()},
            **({"why": session.why} if session.why else {}),
        )

    def denied(self, client: Client, export: str, why: str) -> None:
        """Say who was turned away."""
        who = client.identity.describe()
        self._say("denied", export=export, who=who, **_known(client.identity), why=why)

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
        if self.required and not self._say("writing", **what):
            raise Failed(Errno.EIO, "the audit log cannot be written", request.offset)
        ended = "unknown"
        try:
            result: Result = await next(request)
            ended = "ok"
        except Failed as failed:
            ended = failed.error.name
            raise
        finally:
            self._say("write", **what, result=ended)
        return result

    def inherit(self, before: Self) -> None:
        """Go on with those who are here, in the file of now."""
        self._log = before._log
        self._log.path = self.file

    def retire(self) -> None:
        """Keep no file open for those who are still here."""
        self._log.kept = False
        self._log.close()

    def _say(self, event: str, **said: object) -> bool:
        """Write a line, and say whether it is there."""
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **said}) + "\n"
        try:
            self._log.write(line.encode())
        except OSError as error:
            self._log.lose(error)
            return False
        return True


def _of(session: Session) -> dict[str, Any]:
    return {"session": session.number, "export": session.export}


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
