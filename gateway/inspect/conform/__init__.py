"""Does a server keep its promises? Each is tried on a scratch export, whose content is overwritten.

promise.py     what a promise is, and the check of it
content.py     what is read is what was written
zeroes.py      WRITE_ZEROES
status.py      BLOCK_STATUS
illegal.py     what is not legal is refused, and the connection goes on
connections.py what takes more than one connection to find out
bench.py       what they work on: connections to the export, and content that is known
client.py      a client that believes nothing
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import trio

from gateway.inspect.conform import connections, content, illegal, status, zeroes
from gateway.inspect.conform.bench import Bench, NotOffered, no_more
from gateway.inspect.conform.client import Broken
from gateway.inspect.conform.promise import Promise
from gateway.inspect.instead import instead, listed_by
from gateway.protocol.errors import Refusal
from gateway.protocol.export import Export
from gateway.upstream.configured import server_of
from gateway.upstream.errors import Rejected
from gateway.uri import Target, export_of
from gateway.wire.limits import MIB

PROMISES: tuple[Promise, ...] = (
    *content.PROMISES,
    *zeroes.PROMISES,
    *status.PROMISES,
    *illegal.PROMISES,
    *connections.PROMISES,  # last: a server that takes one client may be gone after these
)

REPLY_SECONDS = 30
"""How long a server may take for one request: any disk writes 128 MiB of zeros in that time."""

CHECK_SECONDS = 300
"""How long a server may take for all of one check: a few hundred requests."""

NEGOTIATE_SECONDS = 10
"""How long a server may take until we are connected, and how long it may be silent in negotiation."""

MAX_LOST = 2
"""After so many failures in a row to connect we give the server up, and all the rest fails."""

MIN_EXPORT_BYTES = 1 * MIB
"""The smallest export that we try: most checks need a few units of 64 KiB, and room around them."""


class CannotConform(Exception):
    """The server cannot be tried; the text says why."""


class CheckResult(Enum):
    """The result of a check."""

    KEPT = "pass"
    BROKEN = "fail"
    NOT_OFFERED = "not offered"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one promise's check, with its reasons."""

    promise: Promise
    verdict: CheckResult
    expected: str = ""
    """If the promise is broken: what the specification says. `came` is what the server did."""
    came: str = ""
    notes: tuple[str, ...] = ()
    """What else the server's owner should know; if the promise is not made, why."""


@dataclass(frozen=True, slots=True)
class Conformity:
    """What was found out about an export."""

    uri: Target
    export: Export
    """With the flags as the server sent them."""
    findings: Sequence[Finding]
    """One for each promise, in the order of the table."""

    @property
    def kept(self) -> bool:
        """Say whether no promise is broken."""
        return all(finding.verdict is not CheckResult.BROKEN for finding in self.findings)


async def conform(
    target: Target,
    *,
    promises: Sequence[Promise] = PROMISES,
    reply_seconds: float = REPLY_SECONDS,
    check_seconds: float = CHECK_SECONDS,
) -> Conformity:
    """Try the promises of the export that the URI names. Its content is overwritten, unless the server says
    that it is read-only: then only checks that read are made.

    `reply_seconds` bounds every request, `check_seconds` every check. Raises `CannotConform`.
    """
    try:
        # No quirks: we want the server as it is.
        async with server_of(target, seconds=NEGOTIATE_SECONDS, quirks=()) as server:
            name, seed = export_of(target), secrets.randbits(64)
            bench = Bench(server, name, seed=seed, reply_seconds=reply_seconds)
            try:
                await bench.main()
            except Rejected as refusal:
                why = instead(refusal, await listed_by(server))
                raise CannotConform(f"{target}: {why}") from None
            try:
                if bench.export.size < MIN_EXPORT_BYTES:
                    raise CannotConform(
                        f"{target}: the export has {bench.export.size} bytes;"
                        f" it takes {MIN_EXPORT_BYTES} to try it"
                    )
                findings = await _try_all(bench, promises, check_seconds)
            finally:
                with trio.CancelScope(shield=True):
                    await bench.leave()
    except Refusal as refusal:
        raise CannotConform(refusal.why) from None
    return Conformity(target, bench.export, findings)


async def _try_all(
    bench: Bench, promises: Sequence[Promise], check_seconds: float
) -> list[Finding]:
    findings: list[Finding] = []
    lost, why = 0, ""
    for promise in promises:
        missing = promise.missing(bench)
        if missing is not None:
            findings.append(Finding(promise, CheckResult.NOT_OFFERED, notes=(missing,)))
            continue
        if lost < MAX_LOST:
            try:
                await bench.main()
                lost = 0
            except Refusal as refusal:
                lost += 1
                why = no_more(refusal) if bench.dismissed else refusal.why
        if not lost:
            findings.append(await _try(bench, promise, check_seconds))
            bench.notes.clear()
        elif bench.dismissed:
            findings.append(Finding(promise, CheckResult.NOT_OFFERED, notes=(why,)))
        else:
            findings.append(Finding(promise, CheckResult.BROKEN, "a connection", why))
    return findings


async def _try(bench: Bench, promise: Promise, check_seconds: float) -> Finding:
    """Check one promise; after a failure the shared connection is closed."""
    verdict = CheckResult.KEPT
    why: tuple[str, ...] = ()
    try:
        with trio.fail_after(check_seconds):
            try:
                await promise.check(bench)
            except NotOffered as reason:
                verdict, why = CheckResult.NOT_OFFERED, (str(reason),)
            await bench.in_step()
        return Finding(promise, verdict, notes=(*why, *bench.notes))
    except Broken as broken:
        expected, came = broken.expected, broken.came
    except Refusal as refusal:
        expected, came = "a connection", refusal.why
    except trio.TooSlowError:
        expected, came = "an end of the check", f"none in {check_seconds:g} s"
    await bench.drop()
    return Finding(promise, CheckResult.BROKEN, expected, came, tuple(bench.notes))
