"""Ready, or the reasons why not."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.web.health import why_not_ready

LISTENER = {"listener": "nbd://h", "drained": False}
UPSTREAM = {"upstream": "main", "required": True, "state": "up", "why": None}
WELL = {"draining": False, "listeners": [LISTENER], "upstreams": [UPSTREAM]}


@pytest.mark.parametrize(
    ("change", "whys"),
    [
        ({}, []),
        ({"draining": True}, ["it is shutting down"]),
        ({"listeners": []}, ["nothing is listened on"]),
        ({"listeners": [{**LISTENER, "drained": True}]}, ["all listeners are drained"]),
        ({"listeners": [{**LISTENER, "drained": True}, LISTENER]}, []),
        (
            {"upstreams": [{**UPSTREAM, "state": "down", "why": "refused"}]},
            ["upstream main, which is required, is down: refused"],
        ),
        (
            {"upstreams": [{**UPSTREAM, "state": "disabled"}]},
            ["upstream main, which is required, is disabled"],
        ),
        ({"upstreams": [{**UPSTREAM, "state": "unknown"}]}, []),
        ({"upstreams": [{**UPSTREAM, "state": "down", "required": False}]}, []),
    ],
)
def test_reasons(change: dict[str, Any], whys: list[str]) -> None:
    assert why_not_ready({**WELL, **change}) == whys
