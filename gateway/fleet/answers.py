"""What etcd answers over its JSON gateway, read. Pure.

An answer of etcd's has a header, or is an error with a code of gRPC's. All else is not from an etcd, and is as
good as no answer: a proxy, say, that has lost the member behind it, and says so in JSON.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

NO_LEADER, TOKEN_UNKNOWN, LAST_CODE = 14, 16, 16
"""Codes of gRPC: UNAVAILABLE (also: it took too long), UNAUTHENTICATED. Others have codes of their own."""

TOKEN_IS_OLD = "revision of auth store is old"
"""What etcd says of a token that was got before its users were changed; the code says less."""

SHOWN_BYTES = 80
"""Of what is no answer of etcd's."""

_Result = TypeVar("_Result")


class EtcdUnavailable(Exception):
    """No member has answered; the text says what came of each. It may or may not have been done."""


class EtcdRefused(Exception):
    """etcd has answered that it will not; the text is its own. It was not done."""


class EtcdForgotten(Exception):
    """etcd does not know what has changed after that revision: all has to be read. It has forgotten it (a
    compaction), or has not come so far: it was begun anew, or taken from a backup.
    """


@dataclass(frozen=True, slots=True)
class EtcdKey:
    """A key, and what it is."""

    key: str
    value: str
    revision: int
    """Of its last change; 0: it is not there."""
    lease: int = 0
    """The lease it ends with; 0: none."""
    gone: bool = False
    """That change has removed it."""


class MemberUnanswered(EtcdUnavailable):
    """One member has not answered."""


class TokenUnknown(Exception):
    """etcd does not know our token, or there is none and it wants one."""


def answer_of(content: bytes) -> Any:
    """Give what etcd has answered. Raises what there is to be said instead."""
    try:
        said = json.loads(content)
        if not isinstance(said, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise MemberUnanswered(
            f"expected an answer of JSON, got {content[:SHOWN_BYTES]!r}"
        ) from None
    inside = said.get("result", said)  # of what comes line by line
    if isinstance(inside, dict) and isinstance(inside.get("header"), dict):
        return said
    # An error has no header. From 3.6 on it has no "error" either, unless it comes line by line.
    error = said.get("error")
    inner = error if isinstance(error, dict) else said
    code = inner.get("code", inner.get("grpc_code"))
    if not isinstance(code, int) or not 0 < code <= LAST_CODE:
        raise _not_etcd(content)
    text = str(inner.get("message") or error)
    if code == TOKEN_UNKNOWN or TOKEN_IS_OLD in text:
        raise TokenUnknown(text)
    if code == NO_LEADER or "no leader" in text:
        raise MemberUnanswered(text)
    raise EtcdRefused(text)


def understood(content: bytes, read: Callable[[Any], _Result]) -> _Result:
    """Give what is read of an answer. Raises what there is to be said instead."""
    said = answer_of(content)
    try:
        return read(said)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise _not_etcd(content) from None


def _not_etcd(content: bytes) -> MemberUnanswered:
    return MemberUnanswered(f"expected an answer of etcd's, got {content[:SHOWN_BYTES]!r}")


def changed_in(line: bytes, after: int) -> list[EtcdKey]:
    """Give the keys of a line of changes after a revision. Raises what there is to be said instead."""

    def read(said: Any) -> tuple[str, bool, list[EtcdKey]]:
        said = said["result"]
        if said.get("canceled"):
            why = str(said.get("cancel_reason") or "it does not let us listen")
            return why, int(said.get("compact_revision", 0)) > 0, []
        found = [
            replace(_key_of(each["kv"]), gone=each.get("type") == "DELETE")
            for each in said.get("events", ())
        ]
        return "", revision_of(said) < after, found

    why, forgotten, found = understood(line, read)
    if forgotten:
        raise EtcdForgotten
    if why:
        raise TokenUnknown(why)  # an old token is not said to be one
    return found


def revision_of(said: Any) -> int:
    """Give at which revision it was so."""
    return int(said["header"]["revision"])


def keys_of(said: Any) -> list[EtcdKey]:
    """Give the keys that were read."""
    return [_key_of(each) for each in said.get("kvs", ())]


def page_of(said: Any) -> tuple[list[EtcdKey], bool, int]:
    """Give the keys, whether there are more, and at which revision they were so."""
    return keys_of(said), bool(said.get("more")), revision_of(said)


def _key_of(said: Mapping[str, Any]) -> EtcdKey:
    return EtcdKey(
        b64decode(said["key"]).decode("utf-8", "replace"),
        b64decode(said.get("value", "")).decode("utf-8", "replace"),
        int(said.get("mod_revision", 0)),
        int(said.get("lease", 0)),
    )
