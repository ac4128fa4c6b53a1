"""The document says what is answered, no more and no less; and docs/status.md has the same names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.routing import Route

from gateway.app import fleet, switching, ticket_verbs
from gateway.config import parse
from gateway.hub.hub import Hub
from gateway.sessions.service import Service
from gateway.status import verbs as status
from gateway.web.app import API, application
from gateway.web.gateway import Gateway
from gateway.web.openapi import SHOWN, document
from gateway.web.verbs import DOES, LOOKS
from gateway.web.watch import Lookout
from tests.web.pages import CONFIG, FULL, LOOK, Running, running
from tests.web.senseless import NO_SENSE, NOT_SO_NOW, out_of_their_ranges_are_400

DOCUMENT = document()
TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "status.md").read_text()

OF_THE_PAGE = {
    "status": "Status",
    "session": "Session",
    "export": "Export",
    "upstream": "Upstream",
    "loss": "Loss",
    "totals": "Totals",
    "times": "Times",
}


def test_it_is_openapi() -> None:
    validate(DOCUMENT)


def test_each_verb_of_the_gateway_is_there() -> None:
    """Those of the control socket, as its table has them, but `upgrade`, which starts programs, and which a
    gateway with [admin] refuses.
    """
    source = (TOP / "gateway" / "app" / "run.py").read_text()
    # Three tables of verbs; what a fleet refuses of them; and two for workers alone, which no API offers.
    assert source.count("_verbs |= ") == 6, "another table of verbs: have them here as well"
    gateway = parse(CONFIG, "test")
    service = Service(gateway, {}, Hub(), structlog.get_logger())
    verbs = {
        "reload",
        "trace",
        *switching.verbs_of(service, None, lambda: None),  # type: ignore[arg-type]
        *(f"export-{name}" for name in ticket_verbs.verbs_of(service)),
        *status.verbs_of(service, None, None),  # type: ignore[arg-type]
        "upgrade",
        "log",
    }
    service.hub.close()
    assert {each.verb for each in (*LOOKS, *DOES)} == verbs
    assert fleet.refusals().keys() <= verbs


def test_it_has_each_path_that_is_answered() -> None:
    gateway = Gateway("")
    answered = {
        (route.path, method)
        for route in application(gateway, Lookout(gateway)).routes
        if isinstance(route, Route) and (route.path.startswith(API) or "static" not in route.path)
        for method in route.methods or ()
        if method != "HEAD"
    }
    said = {
        (path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert answered - said == {("/", "GET"), (f"{API}/openapi.json", "GET")}
    assert not said - answered


@pytest.mark.parametrize("path", [f"{each}/" for each in DOCUMENT["paths"]] + ["/static/", "//"])
async def test_nobody_is_led_from_one_path_to_another(path: str) -> None:
    gateway = Gateway("")
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await application(gateway, Lookout(gateway))(scope, receive, send)
    assert [said[0]["status"], *json.loads(said[1]["body"])["problems"]] == [
        404,
        "there is nothing here; /api/v1/openapi.json says what there is",
    ]


@pytest.mark.parametrize("part", OF_THE_PAGE)
def test_names_are_those_of_the_page(part: str) -> None:
    [table] = re.findall(rf"<!-- names: {part} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    named = [
        name
        for line in table.splitlines()[2:]
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert named == list(SHOWN[OF_THE_PAGE[part]]["properties"])


def wrong(answer: Any, schema: str) -> list[str]:
    """What of an answer the document does not say."""
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return [error.message for error in Draft202012Validator(whole).iter_errors(answer)]


def schema_of(path: str, method: str = "get", status: str = "200") -> str:
    """Which schema the document says that an answer has."""
    answer = DOCUMENT["paths"][path][method]["responses"][status]
    reference: str = answer["content"]["application/json"]["schema"]["$ref"]
    return reference.rpartition("/")[2]


@pytest.mark.real
async def test_answers_are_as_it_says(workdir: Path) -> None:
    async with running(workdir) as gateway:
        await use(gateway)
        for path, methods in DOCUMENT["paths"].items():
            content = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
            if "application/json" not in content:
                continue
            answer = await gateway.ask(path, token=LOOK)
            assert answer.status == 200, path
            assert not wrong(answer.said, schema_of(path)), path
            name = schema_of(path)
            if name in SHOWN and "properties" in SHOWN[name] and name != "Health":
                assert set(answer.said) == set(SHOWN[name]["properties"]), path
        does: dict[str, dict[str, Any]] = {
            "drain": {},
            "undrain": {},
            "disable": {"upstream": "main"},
            "enable": {"upstream": "main"},
            "pause": {"export": "x"},
            "resume": {"export": "x"},
            "losses": {"forget": True},
            "exports": {"export": "made", "upstream": "main", "upstream-name": "", "for": 60},
            "export-renew": {"export": "made", "for": 90},
            "export-remove": {"export": "made"},
        }
        for verb, arguments in does.items():
            answer = await gateway.do(verb, **arguments)
            assert answer.status == 200, (verb, answer.said)
            assert not wrong(answer.said, schema_of(f"/api/v1/{verb}", "post"))
        for status, asked in {
            400: gateway.do("pause", exprt="x"),
            401: gateway.do("drain", token="no-such-token-0123456789"),
            403: gateway.do("drain", token=LOOK),
            409: gateway.do("enable", token=FULL, upstream="no"),
        }.items():
            answer = await asked
            assert answer.status == status
            assert not wrong(answer.said, schema_of("/api/v1/enable", "post", str(status)))


@pytest.mark.real
async def test_what_makes_no_sense_is_400_and_what_is_not_so_now_is_409(workdir: Path) -> None:
    """The gateway decides it, for the verbs of the command line, too."""
    async with running(workdir) as gateway:
        await out_of_their_ranges_are_400(gateway)
        for status, verb, said in (
            *NO_SENSE,
            *NOT_SO_NOW,
            (400, "exports", {"upstream": "main", "tls": "perhaps"}),
            (400, "exports", {"upstream": "main", "until": "2001-01-01T00:00:00Z"}),
            (400, "exports", {"upstream": "main", "for": 60, "until": "2101-01-01T00:00:00Z"}),
            (409, "exports", {"upstream": "nowhere"}),
        ):
            answer = await gateway.do(verb, **said)
            assert answer.status == status, (verb, said, answer.body)


async def use(gateway: Running) -> None:
    """Have something done, so that there is something to show."""
    commands = [part for each in ("write 0 64k", "read 0 64k", "flush") for part in ("-c", each)]
    await trio.run_process(
        ["qemu-io", "-f", "raw", *commands, f"{gateway.nbd}/x"], capture_stdout=True
    )
