"""Arguments of verbs, from a query and from a body."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest

from gateway.web.app import MOST_BODY_BYTES
from gateway.web.guard import MOST_QUERY_CHARACTERS
from gateway.web.serving import HEADER_BYTES
from gateway.web.verbs import DOES, LOOKS, Argument, Misread, checked, from_query

ALL = (
    Argument("name", "string", "A text."),
    Argument("all", "boolean", "A truth."),
    Argument("for", "number", "A number."),
    Argument("most", "integer", "A whole one."),
)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ([], {}),
        ([("name", "x"), ("all", "true"), ("for", "1.5"), ("most", "7")], None),
        ([("all", "")], {"all": True}),
        ([("all", "0")], {"all": False}),
    ],
)
def test_a_query(query: list[tuple[str, str]], said: dict[str, object] | None) -> None:
    if said is None:
        said = {"name": "x", "all": True, "for": 1.5, "most": 7}
    assert from_query(ALL, query) == said


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ([("name", "x"), ("name", "y")], "name is there twice"),
        ([("nam", "x")], "unknown argument 'nam'; known are name, all, for, most"),
        ([("all", "yes")], "all is true or false, got 'yes'"),
        ([("for", "soon")], "for is a number, got 'soon'"),
        ([("most", "1.5")], "most is a whole number, got '1.5'"),
        ([("most", "9" * 5000)], "most is a whole number"),
    ],
)
def test_a_query_that_makes_no_sense(query: list[tuple[str, str]], says: str) -> None:
    with pytest.raises(Misread) as caught:
        from_query(ALL, query)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ([], "expected a JSON object"),
        ({"name": 1}, "name is text, got '1'"),
        ({"all": 1}, "all is true or false"),
        ({"for": True}, "for is a number"),
        ({"most": 1.0}, "most is a whole number"),
        ({"x": 1}, "unknown argument 'x'"),
    ],
)
def test_a_body_that_makes_no_sense(said: object, says: str) -> None:
    with pytest.raises(Misread) as caught:
        checked(ALL, said)
    assert says in str(caught.value)


def test_what_is_needed_is_asked_for() -> None:
    [do] = [each for each in DOES if each.verb == "disconnect"]
    with pytest.raises(Misread, match="session is needed"):
        checked(do.arguments, {})


def test_each_verb_is_there_once() -> None:
    for table in (LOOKS, DOES):
        verbs = [each.verb for each in table]
        assert len(verbs) == len(set(verbs))


@pytest.mark.parametrize("name", ["\x01" * 4096, "ж" * 2048, "x" * 4096])
def test_the_longest_name_can_be_said(name: str) -> None:
    """However JSON and a query write it (proto.md, "Values": strings have up to 4,096 bytes)."""
    assert len(json.dumps({"export": name, "within": 60, "accept-loss": False})) <= MOST_BODY_BYTES
    target = f"/api/v1/sessions?{urlencode({'export': name, 'stuck': 'true', 'most': 100})}"
    assert len(target) <= MOST_QUERY_CHARACTERS <= HEADER_BYTES - 2048
