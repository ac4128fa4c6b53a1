"""Whether the gateway lives, and whether it is ready for clients. Pure.

An orchestrator asks both, and does different things: it ends what does not live, and sends nobody to what is
not ready. So that a server is away never means that the gateway does not live; and it means "not ready" only
where the configuration says that the server is `required`, for else one server of many would take all of them
away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def why_not_ready(status: Mapping[str, Any]) -> list[str]:
    """Give the reasons, from what `status` shows; none: it is ready."""
    return list(_reasons(status))


def _reasons(status: Mapping[str, Any]) -> Iterator[str]:
    if status["draining"]:
        yield "it is shutting down"
    listeners = status["listeners"]
    if not listeners:
        yield "nothing is listened on"
    elif all(each["drained"] for each in listeners):
        yield "all listeners are drained"
    for each in status["upstreams"]:
        if each["required"] and each["state"] in ("down", "disabled"):
            why = f": {each['why']}" if each["why"] else ""
            yield f"upstream {each['upstream']}, which is required, is {each['state']}{why}"
