"""`tests/bench/run notice`: what a client at depth 1 notices of those who look, of crowds and of attackers.

It reads 4 KiB, again and again, alone and then beside one of these (`DISTURBERS`), in a process of its own:

    scraped      1,000 exports are in use, and /metrics and /api/v1/status are asked for without end
    come and go  sessions open an export and leave, without end, each by another of 10,000 names
    attacked     HTTP without a token and with wrong ones, by names that are not ours, 1,000 idle connections,
                 answers that nobody reads, bodies without end

What is judged is how much later its p99 is, in pairs (`tests.bench.pairs`): the upper end of the interval has
to be under `MOST_LATER_SECONDS`. Beside that `status` is asked once a second over the control socket, and has
to answer within `MOST_STATUS_SECONDS`.

    tests/bench/run notice                                20 pairs of each: half an hour
    tests/bench/run notice --pairs 6 --seconds 2 --rows scraped

On a machine of two processors the client, the server, the gateway and whoever disturbs share them: that is in
the numbers, too. Ends with 1 if it may be noticed, with 2 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import trio

from gateway.admin.asking import ControlError, ask
from tests.bench.client import Session
from tests.bench.pairs import LEAST_PAIRS, Interval, interval_of, share
from tests.bench.peers import Stage, stage
from tests.bench.processes import Broken, Child, allow_many_files, free_port, resident_mib
from tests.bench.rows import KIB, MIB

PAIRS = 20

MOST_LATER_SECONDS = 0.002
MOST_STATUS_SECONDS = 0.1

EXPORTS = 1000
NAMES = 10_000
IDLE = 1000

DISK_BYTES = 1024 * MIB

BEGIN_SECONDS = 60.0
"""Until a disturber is at work: it opens a thousand exports."""

STATUS_EVERY_SECONDS = 1.0

CONFIG = """\
[control]
socket = "{control}"
[[listen]]
uri = "nbd://127.0.0.1:{port}"
max-connections = 20000
[upstream.main]
uri = "{upstream}"
[[export]]
name = "*"
upstream = "main"
upstream-name = ""
[admin]
uri = "http://127.0.0.1:{http}"
[log]
level = "error"
"""


@dataclass
class Noticed:
    """What was measured beside one disturber."""

    later: list[float] = field(default_factory=list)
    """By how many seconds the p99 was later, of each pair."""
    status: list[float] = field(default_factory=list)
    """How long `status` took."""
    memory_mib: list[float] = field(default_factory=list)
    """What the gateway had after each pair, with the process that speaks HTTP."""

    @property
    def interval(self) -> Interval:
        """How much later it is."""
        return interval_of(self.later)

    @property
    def is_good(self) -> bool:
        """Nobody notices."""
        return self.interval.upper < MOST_LATER_SECONDS and max(self.status) < MOST_STATUS_SECONDS


# --- Who disturbs


def _scraping(port: int, http: int) -> Iterator[None]:
    there = [Session(port, name=f"export-{number}") for number in range(EXPORTS)]
    for each in there:
        each.read(0, 4 * KIB)
    while True:
        for path in ("/metrics", "/api/v1/status", "/metrics", "/api/v1/exports"):
            _answered(http, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            yield


def _coming_and_going(port: int, _http: int) -> Iterator[None]:
    for number in count():
        session = Session(port, name=f"name-{number % NAMES}")
        session.read(0, 4 * KIB)
        session.leave()
        yield


def _attacking(_port: int, http: int) -> Iterator[None]:
    idle: list[socket.socket] = []
    attacks = [
        "GET /api/v1/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n\r\n",
        "POST /api/v1/drain HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
        "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        "POST /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n" + "4000\r\n" + 0x4000 * "x" + "\r\n",
        f"GET /{'x' * 20_000} HTTP/1.1\r\n",
    ]
    for number in count():
        with contextlib.suppress(OSError):
            one = socket.create_connection(("127.0.0.1", http))
            idle.append(one)
            if number % 5 == 0:  # it reads nothing of that
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if len(idle) > IDLE:
            idle.pop(0).close()
        with contextlib.suppress(OSError):
            _answered(http, random.choice(attacks))
        yield


DISTURBERS: dict[str, Callable[[int, int], Iterator[None]]] = {
    "scraped": _scraping,
    "come and go": _coming_and_going,
    "attacked": _attacking,
}


def _answered(http: int, request: str) -> None:
    """Ask over a connection of its own, and take what comes within a second."""
    with socket.create_connection(("127.0.0.1", http)) as one:
        one.sendall(request.encode())
        while select.select([one], [], [], 1.0)[0] and one.recv(256 * KIB):
            pass


def disturb(kind: str, port: int, http: int, seconds: float) -> None:
    """Disturb for so long; says when it has begun."""
    allow_many_files()
    steps = DISTURBERS[kind](port, http)
    next(steps)
    print("begun", flush=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        next(steps)


# --- Measuring


@dataclass(frozen=True)
class Measured:
    """The gateway that is measured, and where it is asked."""

    child: Child
    http: int
    control: Path


def gateway_of(standing: Stage) -> Measured:
    """Begin it."""
    http, control = free_port(), standing.home / "control"

    def command(port: int) -> list[str]:
        config = standing.home / "notice.toml"
        config.write_text(
            CONFIG.format(control=control, port=port, upstream=standing.upstream.uri, http=http)
        )
        script = str(Path(sys.executable).with_name("nbd-gateway"))
        return [script, "serve", "--config", str(config)]

    return Measured(standing.launch("gateway", command), http, control)


def p99_of(session: Session, seconds: float, look: Callable[[], None]) -> float:
    """Give the time under which 99 of 100 READs were; `look` is called once a second in between."""
    took: list[float] = []
    now = time.perf_counter()
    until, next_look = now + seconds, now + STATUS_EVERY_SECONDS / 2
    while now < until:
        session.read(random.randrange(DISK_BYTES // (4 * KIB)) * 4 * KIB, 4 * KIB)
        after = time.perf_counter()
        took.append(after - now)
        if after >= next_look:
            look()
            next_look = after + STATUS_EVERY_SECONDS
            after = time.perf_counter()
        now = after
    return share(took, 0.99)


@contextlib.contextmanager
def disturbed(kind: str, measured: Measured, seconds: float) -> Iterator[None]:
    """Have it disturbed for so long, from when that has begun."""
    words = [kind, str(measured.child.port), str(measured.http), str(seconds)]
    command = [sys.executable, "-m", "tests.bench.notice", "--disturb", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            if not select.select([child.stdout], [], [], BEGIN_SECONDS)[0]:
                raise Broken(f"who disturbs ({kind}) has not begun after {BEGIN_SECONDS:g} s")
            if child.stdout.readline() != "begun\n":
                raise Broken(f"who disturbs ({kind}) has ended")
            yield
        finally:
            child.kill()


def pair(kind: str, measured: Measured, seconds: float, *, alone_first: bool) -> Noticed:
    """Measure alone and beside."""
    found = Noticed()
    session = Session(measured.child.port)

    def look() -> None:
        began = time.perf_counter()
        try:
            trio.run(ask, measured.control, "status")
        except ControlError as error:
            raise Broken(str(error)) from None
        found.status.append(time.perf_counter() - began)

    def nothing() -> None:
        pass

    def beside() -> float:
        with disturbed(kind, measured, 2 * seconds + BEGIN_SECONDS):
            return p99_of(session, seconds, look)

    with contextlib.closing(session):
        session.read(0, 4 * KIB)
        if alone_first:
            alone = p99_of(session, seconds, nothing)
            with_others = beside()
        else:
            with_others = beside()
            time.sleep(1)  # those who have been cut are seen off
            alone = p99_of(session, seconds, nothing)
        session.leave()
    found.later.append(with_others - alone)
    found.memory_mib.append(resident_mib(measured.child.pid))
    print(
        f"  {kind}: p99 {alone * 1e3:.2f} -> {with_others * 1e3:.2f} ms, status at most"
        f" {max(found.status, default=0) * 1e3:.0f} ms, {found.memory_mib[0]:.0f} MiB",
        file=sys.stderr,
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Give the exit status."""
    parser = argparse.ArgumentParser(prog="tests/bench/run notice")
    parser.add_argument("--rows", default="", help="those that this pattern finds")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"{LEAST_PAIRS} or more")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each half of a pair")
    parser.add_argument("--disturb", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.disturb:
        kind, port, http, seconds = options.disturb
        disturb(kind, int(port), int(http), float(seconds))
        return 0
    allow_many_files()
    kinds = [kind for kind in DISTURBERS if re.search(options.rows, kind)]
    bad = 0
    try:
        with stage() as standing:
            measured = gateway_of(standing)
            for kind in kinds:
                found = Noticed()
                for number in range(options.pairs):
                    one = pair(kind, measured, options.seconds, alone_first=bool(number % 2))
                    found.later += one.later
                    found.status += one.status
                    found.memory_mib += one.memory_mib
                later = found.interval
                bad += not found.is_good
                print(
                    f"{kind:12} p99 {later.middle * 1e3:+.2f} ms, between {later.lower * 1e3:+.2f}"
                    f" and {later.upper * 1e3:+.2f}; status at most {max(found.status) * 1e3:.0f} ms;"
                    f" {found.memory_mib[0]:.0f} -> {found.memory_mib[-1]:.0f} MiB:"
                    f" {'ok' if found.is_good else 'MAY BE NOTICED'}",
                    flush=True,
                )
    except (Broken, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 1 if bad or not kinds else 0


if __name__ == "__main__":
    sys.exit(main())
