"""Holds each request to the rules of `gateway.web.doors` before anything else reads it, and tells browsers how
to treat each answer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.web.doors import (
    Caller,
    Role,
    Visitor,
    comes_from_elsewhere,
    is_ours,
    visitor_without_token,
)
from gateway.web.refusals import Refusals, Wrong
from gateway.web.serving import MOST_AT_WORK
from gateway.web.tokens import Tokens
from gateway.wire.limits import MAX_STRING_BYTES

MOST_QUERY_CHARACTERS = 3 * MAX_STRING_BYTES + 512
"""The longest target: a name of 4,096 bytes, each of them escaped (RFC 3986, 2.1), and a few words more. The
head of a request has room for it."""

HEALTH = ("/livez", "/readyz")
"""What is answered however many others are being answered: one such question a connection, so that their places
come and go.
"""

BROWSERS = {
    # Whatever a name of strangers' turns out to be, nothing of it is run, and nothing is fetched.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""What every answer says to browsers."""


def names_of_this_machine() -> frozenset[str]:
    """Give the names that a Host may have without being configured."""
    return frozenset({"localhost", socket.gethostname().lower()})


class Guard:
    """Stands before an application. `tokens` gives those that are in force, None if there is no file of them;
    who is turned away is among the `refusals`.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str],
        tokens: Callable[[], Tokens | None],
        refusals: Refusals,
    ) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._tokens = tokens
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have it answered."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return  # no WebSockets: hypercorn says so
        headers = Headers(scope=scope)
        caller: Caller = scope["state"]["caller"]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add(message, scope["path"])
            await send(message)

        answer = self._objection(scope, headers, caller)
        if answer is None:
            visitor = self._visitor(headers, caller, does=scope["method"] == "POST")
            if visitor is None:
                answer = problem(401, "there is no such token")
            else:
                scope["state"]["visitor"] = visitor
        await (self._app if answer is None else answer)(scope, receive, sent)

    def _objection(
        self, scope: MutableMapping[str, Any], headers: Headers, caller: Caller
    ) -> Response | None:
        """Say why a request is not even looked at."""
        if scope["path"] not in HEALTH and not scope["state"]["may_work"]():
            why = f"{MOST_AT_WORK} others are being answered, come again"
            return problem(503, why, {"connection": "close"})
        hosts, does = headers.getlist("host"), scope["method"] == "POST"
        if len(hosts) != 1 or not is_ours(hosts[0], self._hosts):
            said = ", ".join(hosts)[:80]
            self._refusals.add(Wrong.HOST, caller, does=does, shown=said)
            return problem(
                421, f"{said or 'nobody'} is no name of this gateway; hosts of [admin] has more"
            )
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return problem(405, "expected GET or POST")
        if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_QUERY_CHARACTERS:
            return problem(414, f"expected no more than {MOST_QUERY_CHARACTERS} characters")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if does and comes_from_elsewhere(hosts[0], origin, site):
            shown = (origin or site or "")[:80]
            self._refusals.add(Wrong.PAGE, caller, does=does, shown=shown)
            return problem(403, "a page from elsewhere may not ask this")
        return None

    def _visitor(self, headers: Headers, caller: Caller, *, does: bool) -> Visitor | None:
        """Say who asks; None: somebody with a token that is none of ours."""
        tokens = self._tokens()
        without = visitor_without_token(caller, has_tokens=tokens is not None)
        said = headers.get("authorization")
        if said is None:
            return without
        scheme, _space, shown = said.partition(" ")
        found = None
        if scheme.lower() == "bearer" and tokens is not None:
            found = tokens.find(shown.strip())
        if found is None:
            self._refusals.add(Wrong.TOKEN, caller, does=does)
            return None
        role = max(filter(None, (found.role, without.role)), key=list(Role).index)
        if caller.kind != "unix":
            role = found.role
        return Visitor(role, f"{found.name} at {caller.where}")


def _add(message: Message, path: str) -> None:
    headers = MutableHeaders(raw=message["headers"])
    for name, value in BROWSERS.items():
        headers[name] = value
    if path in HEALTH:
        headers["connection"] = "close"
    if "cache-control" not in headers:
        headers["cache-control"] = "no-store"


def problem(status: int, why: str, headers: Mapping[str, str] = {}) -> Response:
    """Give an answer that says what is wrong."""
    asks = {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse({"ok": False, "problems": [why]}, status, {**asks, **headers})


def visitor_of(request: Request) -> Visitor:
    """Say who asks."""
    visitor: Visitor = request.state.visitor
    return visitor


def objection_to(request: Request, needed: Role) -> Response | None:
    """Say why somebody may not do what needs a role; None: he may."""
    visitor = visitor_of(request)
    if visitor.role is None:
        return problem(401, "expected a token: Authorization: Bearer TOKEN")
    if needed is Role.FULL and visitor.role is not Role.FULL:
        if "authorization" in request.headers:
            return problem(403, "this token may look, and not do anything")
        return problem(403, "without a token one may look here, and not do anything")
    return None
