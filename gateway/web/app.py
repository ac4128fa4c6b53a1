"""What is answered over HTTP, path by path.

/                      the page; its files are below /static/
/metrics               for Prometheus
/livez, /readyz        for orchestrators: everybody is told yes or no, and the reasons if they may look
/api/v1/VERB           for programs (`gateway.web.verbs`)
/api/v1/me             what whoever asks may do
/api/v1/history        the last quarter of an hour
/api/v1/quirks         what servers get wrong, in words
/api/v1/events         what changes, as server-sent events
/api/v1/openapi.json   what all of these are
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway import __version__
from gateway.admin.asking import ControlError
from gateway.admin.control import MAX_REQUEST_BYTES, ControlAnswer
from gateway.web.doors import Role
from gateway.web.exposition import CONTENT_TYPE, Exposition
from gateway.web.gateway import Busy, Gateway, NotHeard, data_of
from gateway.web.guard import HEALTH, objection_to, problem, visitor_of
from gateway.web.health import why_not_ready
from gateway.web.metrics import METRICS, collected
from gateway.web.openapi import document
from gateway.web.verbs import DOES, LOOKS, Argument, Do, Look, Misread, checked, from_query
from gateway.web.watch import Event, Lookout, TooMany, server_sent

API = "/api/v1"

MOST_BODY_BYTES = MAX_REQUEST_BYTES
"""A verb's arguments: as many as the control socket takes, for there they go."""

BODY_SECONDS = 5.0
"""How long a body may take to come."""

STATIC = Path(__file__).parent / "static"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

Handler = Callable[[Request], Awaitable[Response]]


def application(gateway: Gateway, watch: Lookout) -> Starlette:
    """Make the application."""
    made = Site(gateway, watch)
    routes = [
        Route("/", made.file("index.html"), methods=["GET"]),
        *(
            Route(f"/static/{each.name}", made.file(each.name), methods=["GET"])
            for each in sorted(STATIC.iterdir())
        ),
        *(
            Route(path, answers, methods=["GET"])
            for path, answers in zip(HEALTH, (made.livez, made.readyz), strict=True)
        ),
        Route("/metrics", looking(made.metrics), methods=["GET"]),
        Route(f"{API}/me", looking(made.me), methods=["GET"]),
        Route(f"{API}/history", looking(made.history), methods=["GET"]),
        Route(f"{API}/events", looking(made.events), methods=["GET"]),
        Route(f"{API}/quirks", looking(made.quirks), methods=["GET"]),
        Route(f"{API}/openapi.json", made.openapi, methods=["GET"]),
    ]
    for look in LOOKS:
        handler = looking(partial(made.look, look))
        routes.append(Route(f"{API}/{look.called}", handler, methods=["GET"]))
    for do in DOES:
        handler = partial(made.trace if do.goes_on else made.do, do)
        routes.append(Route(f"{API}/{do.called}", handler, methods=["POST"]))
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _not_found,  # type: ignore[dict-item] # it is called with nothing else
            NotHeard: _said(503),
            Busy: _said(503),
            TooMany: _said(503),
            Misread: _said(400),
            NotBegun: _not_begun,  # type: ignore[dict-item] # the same
        },
    )
    app.router.redirect_slashes = False  # a path is what the document says, and nobody is led to it
    return app


async def _not_found(_request: Request, error: HTTPException) -> Response:
    why = {
        404: f"there is nothing here; {API}/openapi.json says what there is",
        405: "expected another method",
    }
    return problem(error.status_code, why.get(error.status_code, error.detail))


def _said(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_request: Request, error: Exception) -> Response:
        return problem(status, str(error))

    return answer


def looking(handler: Handler) -> Handler:
    """Let only those in who may look."""

    async def held(request: Request) -> Response:
        return objection_to(request, Role.LOOK) or await handler(request)

    return held


class Site:
    """What answers."""

    def __init__(self, gateway: Gateway, watch: Lookout) -> None:
        self._gateway = gateway
        self._watch = watch
        self._exposition = Exposition(METRICS)
        self._document = json.dumps(document()).encode()

    # --- The page

    def file(self, name: str) -> Handler:
        """Give what answers with a file of ours, which is read once."""
        content, type_ = (STATIC / name).read_bytes(), TYPES[Path(name).suffix]

        async def answer(_request: Request) -> Response:
            return Response(content, media_type=type_, headers={"cache-control": "no-cache"})

        return answer

    # --- Health

    async def livez(self, _request: Request) -> Response:
        """Say that the gateway answers: whoever asks ends what does not."""
        await self._gateway.look("alive")
        return JSONResponse({"ok": True})

    async def readyz(self, request: Request) -> Response:
        """Say whether clients may be sent here. The reasons are for those who may look."""
        whys = why_not_ready(await self._gateway.status())
        told = whys if visitor_of(request).role is not None else []
        return JSONResponse({"ok": not whys, "problems": told}, 503 if whys else 200)

    # --- Numbers

    async def metrics(self, _request: Request) -> Response:
        """Give all counts, a few at a time: this thread has others to answer, too."""
        snapshot = await collected(self._gateway)
        return StreamingResponse(
            _in_turns(self._exposition.pieces(snapshot)), media_type=CONTENT_TYPE
        )

    async def history(self, _request: Request) -> Response:
        """Give the last quarter of an hour."""
        return JSONResponse({"points": self._watch.history})

    async def events(self, _request: Request) -> Response:
        """Tell what changes."""
        return EventStream(self._watch.events())

    # --- Verbs

    async def me(self, request: Request) -> Response:
        """Say who asks, and what he may do."""
        visitor = visitor_of(request)
        return JSONResponse({"name": visitor.name, "role": visitor.role, "version": __version__})

    async def quirks(self, _request: Request) -> Response:
        """Say in words what each quirk is."""
        from gateway.quirks import catalogue

        return JSONResponse({name: quirk.summary for name, quirk in catalogue().items()})

    async def openapi(self, _request: Request) -> Response:
        """Give the document."""
        return Response(self._document, media_type="application/json")

    async def look(self, look: Look, request: Request) -> Response:
        """Answer a question."""
        arguments = from_query(look.arguments, request.query_params.multi_items())
        answer = await self._gateway.look(look.verb, arguments)
        if not answer.ok:
            return _answered(answer)
        return JSONResponse(data_of(answer))

    async def do(self, do: Do, request: Request) -> Response:
        """Have something done."""
        if (objection := objection_to(request, Role.FULL)) is not None:
            return objection
        arguments = await _arguments(request, do.arguments)
        return _answered(await self._gateway.do(do.verb, arguments, visitor_of(request).name))

    async def trace(self, do: Do, request: Request) -> Response:
        """Have somebody look on at an export, as long as he does."""
        if (objection := objection_to(request, Role.FULL)) is not None:
            return objection
        arguments = await _arguments(request, do.arguments)
        return EventStream(self._lines(do, arguments, visitor_of(request).name))

    async def _lines(self, do: Do, arguments: Mapping[str, Any], by: str) -> AsyncGenerator[Event]:
        async with self._gateway.listen(do.verb, arguments, by) as (answer, behind):
            if not answer.ok:
                raise NotBegun(answer)
            yield "begins", {"done": list(answer.done)}
            try:
                async for line in behind:
                    yield "line", line
            except ControlError as error:
                yield "away", {"why": str(error)}


class NotBegun(Exception):
    """What was to go on telling does not begin: here is why."""

    def __init__(self, answer: ControlAnswer) -> None:
        super().__init__(*answer.problems)
        self.answer = answer


async def _not_begun(_request: Request, error: NotBegun) -> Response:
    return _answered(error.answer)


class EventStream(Response):
    """Server-sent events (html.spec.whatwg.org, "Server-sent events"), until there are no more or nobody
    listens. What is raised before the first of them is answered as any error is.
    """

    def __init__(self, events: AsyncGenerator[Event]) -> None:
        headers = {"x-accel-buffering": "no"}  # a proxy hands them on as they come
        super().__init__(None, 200, headers, "text/event-stream")
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell them."""
        async with aclosing(self._events) as events:
            first = await anext(events, None)
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            if scope["method"] == "HEAD":
                await send(_body(b"", more=False))
                return
            async with trio.open_nursery() as nursery:

                async def until_nobody_listens() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_nobody_listens)
                if first is not None:
                    await send(_body(server_sent(first), more=True))
                    async for event in events:
                        await send(_body(server_sent(event), more=True))
                nursery.cancel_scope.cancel()
        await send(_body(b"", more=False))


def _body(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _in_turns(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await trio.lowlevel.checkpoint()


def _answered(answer: ControlAnswer) -> Response:
    """Give an answer of the gateway's. Which arguments make no sense is decided there, for all who ask."""
    said = {"ok": answer.ok, "done": answer.done, "problems": answer.problems}
    said |= {} if answer.data is None else {"data": answer.data}
    status = 200 if answer.ok else 400 if answer.misunderstood else 409
    return JSONResponse(said, status)


async def _arguments(request: Request, arguments: tuple[Argument, ...]) -> dict[str, Any]:
    """Give what a body says. Raises `Misread`, `HTTPException`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "expected content-type: application/json")
    body = bytearray()
    try:
        with trio.fail_after(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BODY_BYTES:
                    raise HTTPException(413, f"expected no more than {MOST_BODY_BYTES} bytes")
    except trio.TooSlowError:
        raise HTTPException(408, f"the body took longer than {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body has no end") from None
    try:
        return checked(arguments, json.loads(bytes(body) or b"{}"))
    except (ValueError, RecursionError):
        raise Misread("expected a JSON object, got something else") from None
