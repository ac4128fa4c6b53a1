"""What of etcd's API v3 a fleet needs, over the JSON gateway that every member has: leases, keys, transactions
that compare first, and what has changed. https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/

Several members are one etcd. A call goes to the member that answered last; if that one gives no answer, or says
that it has no leader, to the next, each once. What comes and is no answer of etcd's is none (`answers`). So a
call may have been carried out although the member that did it never said so. Whoever compares and changes
(`change`) has to read again when it is told that nothing was changed, and must put something of its own into
what it writes.

Keys and values are text here, and base64 on the way; numbers of 64 bits are texts in JSON. With a user and a
password a token is got first; it goes with every call, and another one is got when etcd does not know it any
more.

Changes are asked for after a revision, and waited for (`changes`): nothing is missed between two questions, and
one that waits for long is asked anew, so that a member which has stopped is not believed for longer.

The only module that imports httpx, which is there with the extra `fleet`.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx
import trio

from gateway.fleet.answers import (
    EtcdForgotten,
    EtcdKey,
    EtcdRefused,
    EtcdUnavailable,
    MemberUnanswered,
    TokenUnknown,
    answer_of,
    changed_in,
    keys_of,
    page_of,
    revision_of,
    understood,
)
from gateway.wire.limits import KIB

MOST_ANSWER_BYTES = 16 * 1024 * KIB
"""Of one answer. A page of keys has some hundred KiB; a key has no more than a request may have, 1.5 MiB
(--max-request-bytes)."""

PAGE_KEYS = 500
"""Keys that one call reads."""

_Result = TypeVar("_Result")

_Ask = Callable[[str, str, Mapping[str, object]], Awaitable[_Result]]
"""Asks a member something, and gives what it says."""


HAS_LEADER = {"Grpc-Metadata-hasleader": "true"}
"""With this a member that has lost the others says so to whoever waits for changes at it."""


@dataclass(frozen=True, slots=True)
class EtcdPut:
    """A key that a transaction sets."""

    key: str
    value: str
    lease: int = 0


class Etcd:
    """An etcd of these members (`https://HOST:PORT`). Each has `seconds` for a step (to
    connect, to answer), and twice that for all. The `password` is asked for with each token: it may be another
    one by then. Use as a context manager.

    All methods raise `EtcdUnavailable` and `EtcdRefused`.
    """

    def __init__(
        self,
        members: Sequence[str],
        *,
        context: ssl.SSLContext | None = None,
        user: str | None = None,
        password: Callable[[], str] = str,
        seconds: float = 2.0,
    ) -> None:
        self._members = [each.rstrip("/") for each in members]
        self._first = 0
        self._user, self._password = user, password
        self._token = ""
        self._seconds = seconds
        # Whose proxies are in the environment is of no concern to a fleet.
        self._http = httpx.AsyncClient(
            verify=context if context is not None else False,
            trust_env=False,
            timeout=httpx.Timeout(seconds),
        )

    async def __aenter__(self) -> Etcd:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await self._http.aclose()

    # --- Leases

    async def grant(self, seconds: int) -> tuple[int, float]:
        """Make a lease; give its number, and how many seconds etcd has granted."""

        def granted(said: Any) -> tuple[int, float]:
            return int(said["ID"]), float(said["TTL"])

        return await self._call("lease/grant", {"TTL": str(seconds)}, granted)

    async def keep_alive(self, lease: int) -> float:
        """Renew a lease; give how many seconds it has from when etcd handled that. 0: there is none."""

        def renewed(said: Any) -> float:
            return float(said["result"].get("TTL", 0))

        return await self._call("lease/keepalive", {"ID": str(lease)}, renewed)

    async def revoke(self, lease: int) -> None:
        """End a lease, and its keys with it."""
        await self._call("lease/revoke", {"ID": str(lease)}, lambda _said: None)

    # --- Keys

    async def get(self, key: str) -> EtcdKey:
        """Give a key as a majority of the members have it."""
        found = await self._call("kv/range", {"key": _encoded(key)}, keys_of)
        return found[0] if found else EtcdKey(key, "", 0)

    async def below(self, prefix: str) -> tuple[list[EtcdKey], int]:
        """Give all keys that begin with `prefix`, as they were at one revision, and that revision."""
        found: list[EtcdKey] = []
        begin, end, revision = prefix.encode(), _behind(prefix), 0
        while True:
            asked = {
                "key": b64encode(begin).decode(),
                "range_end": end,
                "limit": str(PAGE_KEYS),
                "revision": str(revision),
            }
            page, more, now = await self._call("kv/range", asked, page_of)
            revision = revision or now
            found += page
            if not more or not page:
                return found, revision
            begin = page[-1].key.encode() + b"\0"

    async def change(
        self,
        as_read: Sequence[EtcdKey],
        puts: Sequence[EtcdPut] = (),
        deletes: Sequence[str] = (),
    ) -> int:
        """Set keys and remove keys, all or none, if each of `as_read` was not changed since. Give the revision
        at which it was done; 0: it was not. Then read: it may be that it was done, and the answer was lost.
        """
        compare = [
            {
                "key": _encoded(each.key),
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": str(each.revision),
            }
            for each in as_read
        ]
        done: list[Mapping[str, object]] = [
            {
                "request_put": {
                    "key": _encoded(each.key),
                    "value": _encoded(each.value),
                    "lease": str(each.lease),
                }
            }
            for each in puts
        ]
        done += [{"request_delete_range": {"key": _encoded(each)}} for each in deletes]

        def changed(said: Any) -> int:
            return revision_of(said) if said.get("succeeded") else 0

        return await self._call("kv/txn", {"compare": compare, "success": done}, changed)

    async def changes(self, prefix: str, after: int, seconds: float) -> tuple[list[EtcdKey], int]:
        """Wait for `seconds` at most until keys that begin with `prefix` change after a revision. Give each
        change as the key was then, in order, and after which revision to ask for more. Raises `EtcdForgotten`,
        also if etcd does not know that revision yet: it was begun anew, or the member that was asked is behind.
        """
        asked = {
            "create_request": {
                "key": _encoded(prefix),
                "range_end": _behind(prefix),
                "start_revision": str(after + 1),
            }
        }
        return await self._tried("watch", asked, partial(self._listen, seconds, after))

    # --- Calls

    async def _call(
        self, what: str, asked: Mapping[str, object], read: Callable[[Any], _Result]
    ) -> _Result:
        """Ask, and give what is `read` of the answer."""

        async def ask(member: str, what: str, asked: Mapping[str, object]) -> _Result:
            content = await self._ask(member, what, asked)
            return understood(content, read)

        return await self._tried(what, asked, ask)

    async def _tried(self, what: str, asked: Mapping[str, object], ask: _Ask[_Result]) -> _Result:
        """Ask one member after the other, until one answers. Others do so at the same time: who finds one that
        does not answer makes the next the first, unless somebody has done so before.
        """
        tried: list[str] = []
        again = True
        count = len(self._members)
        left = [*range(count)]
        while left:
            number = min(left, key=lambda each: (each - self._first) % count)
            member = self._members[number]
            try:
                await self._authenticate_if_needed(member)
                return await ask(member, what, asked)
            except MemberUnanswered as error:
                tried.append(f"{member}: {error}")
                left.remove(number)
                if self._first == number:
                    self._first = (number + 1) % count
            except TokenUnknown as error:
                self._token = ""
                if not again or self._user is None:
                    raise EtcdRefused(str(error)) from None
                again = False
        raise EtcdUnavailable("; ".join(tried))

    async def _authenticate_if_needed(self, member: str) -> None:
        if self._user is None or self._token:
            return
        asked = {"name": self._user, "password": self._password()}
        content = await self._ask(member, "auth/authenticate", asked)
        self._token = understood(content, lambda said: str(said["token"]))

    async def _ask(self, member: str, what: str, asked: Mapping[str, object]) -> bytes:
        try:
            # httpx has a limit of its own for each step, and closes the socket then; from outside it does not.
            with trio.fail_after(2 * self._seconds):
                async with self._posted(member, what, asked, self._headers()) as answer:
                    content = bytearray()
                    with trio.CancelScope() as reading:
                        async for piece in answer.aiter_raw():
                            content += piece
                            if len(content) > MOST_ANSWER_BYTES:
                                reading.cancel()
                    if reading.cancel_called:
                        raise MemberUnanswered(f"more than {MOST_ANSWER_BYTES} bytes")
        except trio.TooSlowError:
            raise MemberUnanswered(f"no answer within {2 * self._seconds:g} s") from None
        except (httpx.HTTPError, OSError) as error:
            raise MemberUnanswered(_words(error)) from None
        return bytes(content)

    @asynccontextmanager
    async def _posted(
        self,
        member: str,
        what: str,
        asked: Mapping[str, object],
        headers: Mapping[str, str],
        timeout: httpx.Timeout | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Send a question, and give the answer as it comes."""
        url = f"{member}/v3/{what}"
        limits = self._http.timeout if timeout is None else timeout
        request = self._http.build_request(
            "POST", url, json=asked, headers=dict(headers), timeout=limits
        )
        request.stream = _Question(request.content)
        answer = await self._http.send(request, stream=True)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def _listen(
        self, seconds: float, after: int, member: str, what: str, asked: Mapping[str, object]
    ) -> tuple[list[EtcdKey], int]:
        """Ask a member what changes, and listen until something has, or it has said nothing for so long. It
        says at once that it has understood: if not that, it is as good as gone.
        """
        understood, content = False, b""
        found: list[EtcdKey] = []
        failed: Exception | None = None
        headers = {**self._headers(), **HAS_LEADER}
        timeout = httpx.Timeout(self._seconds, read=max(seconds, self._seconds))
        try:
            async with self._posted(member, what, asked, headers, timeout) as answer:
                # Cancelled, not left: httpx would leave what reads for the collector.
                with trio.CancelScope() as reading:
                    async for piece in answer.aiter_raw():
                        *lines, content = (content + piece).split(b"\n")
                        understood = understood or bool(lines)
                        try:
                            found += [each for line in lines for each in changed_in(line, after)]
                            if len(content) > MOST_ANSWER_BYTES:
                                raise MemberUnanswered(
                                    f"a line of more than {MOST_ANSWER_BYTES} bytes"
                                )
                        except (
                            EtcdForgotten,
                            EtcdRefused,
                            MemberUnanswered,
                            TokenUnknown,
                        ) as error:
                            failed = error
                        if found or failed:
                            reading.cancel()
        except httpx.ReadTimeout:
            if not understood:
                raise MemberUnanswered("it does not say that it listens") from None
            return [], after
        except (httpx.HTTPError, OSError) as error:
            raise MemberUnanswered(_words(error)) from None
        if failed is not None:
            raise failed
        if not found:
            answer_of(content)  # which is why it is over, if it has said that
            raise MemberUnanswered("it has ended its answer")
        return found, found[-1].revision

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}


class _Question(httpx.AsyncByteStream):
    """What is asked, in one piece. httpx's own is a generator, which whoever is cancelled while he sends leaves
    to the collector.
    """

    def __init__(self, content: bytes) -> None:
        self._left = [content]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _behind(prefix: str) -> str:
    """Give the first key that is behind all that begin with a prefix, which ends in "/"."""
    assert prefix.endswith("/")
    return _encoded(prefix[:-1] + "0")


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
