"""What makes no sense to ask of a gateway, and what makes sense and is not so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from gateway.web.verbs import DOES, LOOKS, Do
from tests.web.pages import Running

Said = tuple[int, str, dict[str, Any]]
"""The status of the answer, a verb, and its arguments."""

NO_SENSE: tuple[Said, ...] = (
    (400, "pause", {"export": "*"}),
    (400, "pause", {"export": "x", "holder": ""}),
    (400, "pause", {"export": "x", "upstream": "main"}),
    (400, "losses", {"export": "*"}),
    (400, "trace", {"export": "*"}),
    (400, "drain", {"end": True, "deadline": -1}),
    (400, "drain", {"end": True, "listener": "nbd://nowhere"}),
)

NOT_SO_NOW: tuple[Said, ...] = (
    (409, "drain", {"listener": "nbd://nowhere"}),
    (409, "pause", {"export": "nowhere"}),
    (409, "resume", {"export": "x"}),
    (409, "enable", {"upstream": "nowhere"}),
    (409, "disconnect", {"session": "k3wq7x-7"}),
    (409, "trace", {"export": "nowhere"}),
)

ENOUGH: Mapping[str, dict[str, Any]] = {
    "pause": {"export": "x"},
    "switch": {"export": "x"},
    "trace": {"export": "x"},
    "exports": {"upstream": "main", "upstream-name": ""},
    "export-renew": {"export": "made"},
}
"""What is said beside an argument that is out of its range, where something has to be."""

WITHOUT_A_RANGE = {("log", "after")}
"""No line has such a number, and none is given."""

OUT_OF_ANY_RANGE = (-1, 10**30)


async def out_of_their_ranges_are_400(gateway: Running, without: Collection[str] = ()) -> None:
    """Say every number that a verb takes as none can be, and see that it is named in the answer."""
    for each in (*LOOKS, *DOES):
        if each.verb in without:
            continue
        for argument in each.arguments:
            if argument.type not in ("number", "integer"):
                continue
            for number in OUT_OF_ANY_RANGE:
                said = {**ENOUGH.get(each.called, {}), argument.name: number}
                if isinstance(each, Do):
                    answer = await gateway.do(each.called, **said)
                else:
                    answer = await gateway.ask(f"/api/v1/{each.called}?{urlencode(said)}")
                if (each.verb, argument.name) in WITHOUT_A_RANGE:
                    assert answer.status == 200, answer.body
                else:
                    assert answer.status == 400, (each.verb, said, answer.body)
                    assert argument.name in answer.said["problems"][0], answer.said
