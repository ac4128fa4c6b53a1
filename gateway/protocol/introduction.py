"""How a gateway says that it is one, and which version: to whoever asks for exactly that, and to nobody else.

The question is a LIST_META_CONTEXT with the query `x-nbd-gateway:version`. The answer is one context more, with
the version after `=`. proto.md keeps namespaces that begin with `x-` free for such things ("Metadata
querying"), and every other server has to ignore the query. The context cannot be selected, is in no other list,
and no wildcard stands for it. So a client that does not know it never meets it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gateway import __version__

QUERY = "x-nbd-gateway:version"

_ANSWER = re.compile(re.escape(QUERY) + r"=([0-9A-Za-z.+-]{1,64})")
"""A version as Python packages have it, short enough for a line of a table."""


def answer() -> str:
    """Give the name of the context that answers the query."""
    return f"{QUERY}={__version__}"


def without(queries: Sequence[str]) -> tuple[str, ...]:
    """Give the queries that are not for the gateway itself."""
    return tuple(query for query in queries if query != QUERY)


def version_in(contexts: Iterable[str]) -> str | None:
    """Give the version of a gateway that has answered with these contexts; None if none has."""
    found = (_ANSWER.fullmatch(name) for name in contexts)
    return next((each[1] for each in found if each is not None), None)
