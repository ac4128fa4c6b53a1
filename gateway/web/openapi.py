"""The API as an OpenAPI 3.1 document, made of the table of verbs and of what the answers have in them.

`SHOWN` has a schema for each thing that is shown. Programs may rely on what it names: a name stays, and others
may come. docs/status.md says the same to people, and `tests/web/test_openapi.py` holds both to what the gateway
answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway import __version__
from gateway.web.verbs import DOES, LOOKS, Argument, Do, Look

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
TRUTH: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}
TIME: Schema = {"type": "string", "format": "date-time"}


def perhaps(schema: Schema) -> Schema:
    """Give the schema of what may be null."""
    if "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def many(schema: Schema) -> Schema:
    """Give the schema of a list."""
    return {"type": "array", "items": schema}


def by_name(schema: Schema) -> Schema:
    """Give the schema of what is there by name."""
    return {"type": "object", "additionalProperties": schema}


def one(name: str) -> Schema:
    """Refer to another schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def thing(**properties: Schema) -> Schema:
    """Give the schema of an object that has all of these. Others may come."""
    return {"type": "object", "properties": properties, "required": list(properties)}


SHOWN: Mapping[str, Schema] = {
    "Times": thing(
        sampled=COUNT,
        mean=perhaps(SECONDS),
        half_under=perhaps(SECONDS),
        p99_under=perhaps(SECONDS),
        p999_under=perhaps(SECONDS),
        total=SECONDS,
        buckets=many(COUNT),
    ),
    "Totals": thing(
        sessions=COUNT,
        ended=by_name(COUNT),
        requests=by_name(COUNT),
        bytes=by_name(COUNT),
        errors=by_name(COUNT),
        refused=by_name(COUNT),
        refused_by=by_name(by_name(COUNT)),
        losses=COUNT,
        replayed_bytes=COUNT,
        seconds=by_name(one("Times")),
    ),
    "Listener": thing(
        listener=TEXT,
        tls=TEXT,
        clients=COUNT,
        most_clients=COUNT,
        drained=TRUTH,
        sessions_end_in_seconds=perhaps(SECONDS),
        handshakes=by_name(COUNT),
        tls_versions=by_name(COUNT),
    ),
    "Drained": thing(
        left=COUNT,
        moved=COUNT,
        moving=many(thing(disk=TEXT, what=TEXT)),
        stays=many(thing(disk=TEXT, why=TEXT)),
        more=COUNT,
        sessions_end_in_seconds=perhaps(SECONDS),
    ),
    "Upstream": thing(
        upstream=TEXT,
        servers=many(TEXT),
        required=TRUTH,
        state={"enum": ["up", "down", "disabled", "unknown"]},
        why=perhaps(TEXT),
        sessions=COUNT,
        connections=COUNT,
        ready=COUNT,
        most_connections=perhaps(COUNT),
        repaired=by_name(COUNT),
        flags_cleared=by_name(COUNT),
        seconds=by_name(one("Times")),
    ),
    "Status": thing(
        version=TEXT,
        compiled_pump=TRUTH,
        started=TIME,
        config_loaded=TIME,
        uptime_seconds=SECONDS,
        draining=TRUTH,
        older=perhaps(thing(pid=COUNT, version=TEXT, clients=COUNT, sessions=COUNT)),
        fleet=perhaps(thing(gateway=TEXT, homes=COUNT, drained=perhaps(one("Drained")))),
        sessions_end_in_seconds=perhaps(SECONDS),
        waits_for_sessions=many(thing(session=TEXT, export=TEXT, client=TEXT, in_flight=COUNT)),
        listeners=many(one("Listener")),
        came_by=many(thing(listener=TEXT, sessions=by_name(COUNT), ended=by_name(COUNT))),
        sessions=COUNT,
        negotiations=COUNT,
        stuck_sessions=COUNT,
        stuck=many(
            thing(
                session=TEXT,
                export=TEXT,
                upstream=TEXT,
                client=TEXT,
                waits_for=perhaps(TEXT),
                why=perhaps(TEXT),
                silent_seconds=perhaps(SECONDS),
            )
        ),
        upstreams=many(one("Upstream")),
        paused=many(TEXT),
        pauses=many(thing(export=TEXT, by=TEXT, since=TIME)),
        switched=by_name(TEXT),
        disks_with_losses_untold=COUNT,
        tickets=perhaps(COUNT),
        certificates=many(thing(of=TEXT, what=TEXT)),
        expiries=many(thing(file=TEXT, seconds={"type": "number"})),
        totals=one("Totals"),
        hub=thing(
            rounds=one("Times"),
            polled=COUNT,
            waited=COUNT,
            slept=COUNT,
            yielded=COUNT,
            parked=COUNT,
        ),
        events=many(thing(event=TEXT, upstream=perhaps(TEXT), times=COUNT)),
        log_lines_dropped=COUNT,
    ),
    "Session": thing(
        session=TEXT,
        export=TEXT,
        upstream=TEXT,
        listener=TEXT,
        client=TEXT,
        who=TEXT,
        tls=perhaps(TEXT),
        seconds=SECONDS,
        plan=by_name(many(TEXT)),
        read_only=TRUTH,
        connections=COUNT,
        shared=TRUTH,
        quirks=many(TEXT),
        in_flight=COUNT,
        requests=by_name(COUNT),
        bytes=by_name(COUNT),
        errors=by_name(COUNT),
        last_seconds=perhaps(SECONDS),
        last_upstream_seconds=perhaps(SECONDS),
        waits_for=perhaps(TEXT),
        why=perhaps(TEXT),
        stuck=TRUTH,
        silent_seconds=perhaps(SECONDS),
    ),
    "Sessions": thing(sessions=many(one("Session")), more=TRUTH),
    "Export": thing(
        export=TEXT,
        upstream=perhaps(TEXT),
        sessions=COUNT,
        paused=TRUTH,
        paused_by=perhaps(TEXT),
        paused_since=perhaps(TIME),
        switched=TRUTH,
        ticket=TRUTH,
        totals=one("Totals"),
    ),
    "Exports": thing(exports=many(one("Export")), more=TRUTH),
    "Upstreams": thing(upstreams=many(one("Upstream"))),
    "Loss": thing(
        disk=TEXT,
        why=many(TEXT),
        bytes=perhaps(COUNT),
        ranges=many(many(COUNT)),
        more_ranges=COUNT,
        sessions_not_told=COUNT,
        next_is_told=TRUTH,
    ),
    "Losses": thing(losses=many(one("Loss")), more=COUNT, unnamed=COUNT),
    "Ticket": thing(
        export=TEXT,
        upstream=TEXT,
        made=TIME,
        until=perhaps(TIME),
        once=TRUTH,
        used_by=perhaps(TEXT),
        sessions=COUNT,
        why_not=perhaps(TEXT),
        said={"type": "object"},
    ),
    "Tickets": thing(tickets=many(one("Ticket")), more=TRUTH),
    "Log": thing(
        lines=many(
            thing(number=COUNT, time=SECONDS, level=TEXT, event=TEXT, fields={"type": "object"})
        )
    ),
    "Point": thing(
        time=SECONDS,
        seconds=SECONDS,
        sessions=COUNT,
        stuck_sessions=COUNT,
        latency=perhaps(thing(p50=SECONDS, p99=SECONDS)),
        requests=by_name(COUNT),
        bytes=by_name(COUNT),
        errors=COUNT,
    ),
    "History": thing(points=many(one("Point"))),
    "Me": thing(name=TEXT, role={"enum": ["look", "full"]}, version=TEXT),
    "Quirks": by_name(TEXT),
    "Health": thing(ok=TRUTH),
    "Answer": thing(ok=TRUTH, done=many(TEXT), problems=many(TEXT)),
    "Problem": thing(ok={"const": False}, problems=many(TEXT)),
}

PATHS: Mapping[str, tuple[str, str]] = {
    "/livez": ("Whether the gateway lives: 200, or 503", "Health"),
    "/readyz": (
        "Whether clients may be sent here: 200, or 503 and to who may look the reasons",
        "Health",
    ),
    "/api/v1/me": ("What whoever asks may do", "Me"),
    "/api/v1/history": ("The last quarter of an hour, a point every two seconds", "History"),
    "/api/v1/quirks": ("What servers get wrong, in words", "Quirks"),
}
"""What is looked at and is no verb: its summary, and the schema of its answer."""

EVENTS = (
    "What changes, as server-sent events: `status` (Status), when something of it other than a count has"
    " changed; `point` (Point), every two seconds; `log` (lines of Log); `away`, with `why`: the gateway is"
    " not heard"
)


def document() -> dict[str, Any]:
    """Give the document."""
    paths: dict[str, dict[str, Any]] = {}
    for path, (summary, schema) in PATHS.items():
        paths[path] = {"get": _operation(path, summary, schema)}
    paths["/metrics"] = {"get": _text("metrics", "All counts", "application/openmetrics-text")}
    paths["/api/v1/events"] = {"get": _text("events", EVENTS, "text/event-stream")}
    for look in LOOKS:
        paths.setdefault(f"/api/v1/{look.called}", {})["get"] = _look(look)
    for do in DOES:
        paths.setdefault(f"/api/v1/{do.called}", {})["post"] = _do(do)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nbd-gateway",
            "version": __version__,
            "description": "What a running gateway shows, and what it can be told. GET looks and changes"
            " nothing; POST does something, and needs a token of role full. A name that is here stays;"
            " others may come.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": dict(SHOWN),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(path: str, summary: str, schema: str) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    return {"operationId": f"get-{name}", "summary": summary, "responses": _responses(one(schema))}


def _text(name: str, summary: str, kind: str) -> dict[str, Any]:
    content = {kind: {"schema": TEXT}}
    return {
        "operationId": f"get-{name}",
        "summary": summary,
        "responses": {
            **_responses(None),
            "200": {"description": "So it is.", "content": content},
        },
    }


def _look(look: Look) -> dict[str, Any]:
    return {
        "operationId": f"get-{look.called}",
        "summary": look.summary,
        "parameters": [
            {
                "name": each.name,
                "in": "query",
                "required": each.needed,
                "description": each.meaning,
                "schema": {"type": each.type},
            }
            for each in look.arguments
        ],
        "responses": _responses(one(look.shows)),
    }


def _do(do: Do) -> dict[str, Any]:
    body = {
        "type": "object",
        "properties": {each.name: _argument(each) for each in do.arguments},
        "required": [each.name for each in do.arguments if each.needed],
        "additionalProperties": False,
    }
    done = {
        "description": "It is done.",
        "content": {"application/json": {"schema": one("Answer")}},
    }
    if do.goes_on:
        done = {
            "description": "It is done: server-sent events, the first of which says what.",
            "content": {"text/event-stream": {"schema": TEXT}},
        }
    return {
        "operationId": f"post-{do.called}",
        "summary": do.summary,
        "requestBody": {"content": {"application/json": {"schema": body}}},
        "responses": {**_responses(None), "200": done},
        "security": [{"token": []}],
    }


def _argument(argument: Argument) -> dict[str, Any]:
    return {"type": argument.type, "description": argument.meaning}


def _responses(schema: Schema | None) -> dict[str, Any]:
    problem = {"application/json": {"schema": one("Problem")}}
    found: dict[str, Any] = {
        status: {"description": why, "content": problem}
        for status, why in (
            ("400", "An argument makes no sense: of the wrong type, out of its range, or none."),
            ("401", "It needs a token, or there is no such one."),
            ("403", "This token may look alone, or a page from elsewhere asks."),
            ("409", "It makes sense, and could not be done now; the problems say why."),
            ("503", "The gateway does not answer, or is not ready, or too many ask."),
        )
    }
    if schema is not None:
        found["200"] = {
            "description": "So it is.",
            "content": {"application/json": {"schema": schema}},
        }
    return found
