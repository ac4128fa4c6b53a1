"""What one process of the gateway tells another: a line of JSON, and bytes behind it.

The two may be of two versions of the gateway, so each message says in which version of these words it is
written (`VERSION`), and the first ones say which versions each side reads (`common`). A message of another
version, of another kind, or with a field that is missing or of another type, is `NotUnderstood`: whoever gets
one goes on by itself. A field that nobody knows is passed over, so a later version may add one.

`KINDS` is all that there is. A message is one datagram: it is there as a whole, or not.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.wire.limits import KIB, MAX_OPTION_BYTES

VERSION = 1
"""Of the words in `KINDS`."""

READ = (1,)
"""The versions that are understood here."""

MAX_MESSAGE_BYTES = 2 * MAX_OPTION_BYTES + 32 * KIB
"""The longest message: an option and what was received behind it, which is no longer, and a certificate's
names."""

MAX_DESCRIPTORS = 64
"""Descriptors with one message; the kernel takes 253 (unix(7), SCM_RIGHTS)."""

NO_ROOM = os.strerror(errno.EMFILE)
"""Why a process does not get the descriptors that are sent to it: the kernel leaves them out, and says only
that it did."""

NUMBER, TEXT, TRUTH, LIST, TABLE = int, str, bool, list, dict

KINDS: Mapping[str, Mapping[str, type]] = {
    # While the newer process is prepared
    "hello": {"reads": LIST, "pid": NUMBER, "version": TEXT},
    "doors": {"version": TEXT, "pid": NUMBER, "doors": LIST, "last": TRUTH},
    "state": {"switched": TABLE, "disabled": LIST, "drained": LIST, "children": LIST},
    "tickets-said": {},
    "failed": {"problems": LIST},
    "ready": {"doors": LIST, "commands": TABLE},
    # The change
    "go": {},
    "serving": {},
    # While the older one has clients still
    "client": {"client": TABLE},
    "taken": {"number": NUMBER},
    "yours": {"number": NUMBER},
    "here": {"id": TEXT, "door": LIST, "who": TABLE, "export": TEXT, "open": TRUTH},
    "gone": {"id": TEXT},
    "lost": {"site": TABLE, "why": TEXT, "ranges": LIST},
    "child": {"upstream": TEXT, "command": LIST, "pid": NUMBER, "path": TEXT},
    "child-taken": {"upstream": TEXT},
    "runs": {"upstream": TEXT, "pid": NUMBER},
    "unnamed": {"where": LIST, "names": LIST, "all": TRUTH},
    "closed": {"door": LIST},
    "errand": {"number": NUMBER, "verb": TEXT, "asked": TABLE, "by": TEXT, "sessions": LIST},
    "answer": {"number": NUMBER, "ok": TRUTH, "done": LIST, "problems": LIST, "here": TRUTH},
    "undo": {"number": NUMBER},
    "resumed": {"exports": LIST},
    "switched": {"exports": TABLE},
    "ticket": {"file": TABLE, "in-force": TRUTH},
    "ticket-over": {"name": TEXT, "why": TEXT, "expired": TRUTH},
    # Between a supervisor and its workers (`gateway.workers`)
    "door": {"door": LIST, "port": NUMBER, "place": NUMBER},
    "serve": {"worker": NUMBER, "workers": NUMBER, "homes": LIST},
    "prepared": {"run": TEXT, "problems": LIST},
    "begin": {},
    "goes": {"to": NUMBER, "client": TABLE},
    "refused": {"number": NUMBER, "why": TEXT, "again": TRUTH},
    "asks": {},
    "wants": {"to": NUMBER},
    "reload": {"homes": LIST},
    "commit": {},
    "reloaded": {"done": LIST, "problems": LIST},
    "drain": {"milliseconds": NUMBER},
    "borrows": {"number": NUMBER, "keys": LIST, "most": LIST},
    "lent": {"number": NUMBER, "full": LIST},
    "gives back": {"keys": LIST},
    "wants tokens": {"key": TEXT, "wants": LIST},
    "tokens": {"key": TEXT, "tokens": LIST},
    "gives tokens back": {"key": TEXT, "tokens": LIST},
    # From one gateway of a fleet to another (`gateway.fleet.door`), where "client" is said, too
    "kept": {"way": TEXT},
    # The end
    "stop": {},
    "bye": {},
    "thanks": {},
}
"""The fields that a message of each kind has, and what each is."""


class NotUnderstood(Exception):
    """What came is no message that is understood here; the text says what was expected, and what came."""


class DescriptorsLost(NotUnderstood):
    """A message came without all of its descriptors: this process has as many open as it may have (unix(7))."""

    def __init__(self, message: ChannelMessage) -> None:
        super().__init__(f"a message {message.kind!r} came without its descriptors: {NO_ROOM}")
        self.message = message


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    """One message. `data` are bytes as a client has sent them, `descriptors` what goes along."""

    kind: str
    said: Mapping[str, Any] = field(default_factory=dict)
    data: bytes = field(default=b"", repr=False)
    descriptors: tuple[int, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.said[name]


def encode(message: ChannelMessage) -> bytes:
    """Give a message as bytes, without its descriptors. Raises `ValueError` if it is too long."""
    _check(message.kind, message.said)
    head = json.dumps({"v": VERSION, "kind": message.kind, **message.said}).encode()
    whole = head + b"\n" + message.data
    if len(whole) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"a message {message.kind!r} has at most {MAX_MESSAGE_BYTES} bytes, this one has {len(whole)}"
        )
    return whole


def decode(whole: bytes, descriptors: Collection[int] = ()) -> ChannelMessage:
    """Read a message. Raises `NotUnderstood`."""
    head, _newline, data = whole.partition(b"\n")
    try:
        said = json.loads(head)
    except (ValueError, RecursionError):
        raise NotUnderstood(f"expected a message of JSON, got {head[:40]!r}") from None
    if not isinstance(said, dict):
        raise NotUnderstood(f"expected a message, got {head[:40]!r}")
    version, kind = said.pop("v", None), said.pop("kind", None)
    if version not in READ:
        raise NotUnderstood(f"expected a message of version {_words(READ)}, got {version!r:.40}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise NotUnderstood(f"expected a message of a kind that is known, got {kind!r:.40}")
    _check(kind, said)
    return ChannelMessage(kind, said, data, tuple(descriptors))


def common(theirs: Collection[object]) -> int:
    """Give the latest version that both sides read. Raises `NotUnderstood`."""
    both = [version for version in READ if version in theirs]
    if not both:
        raise NotUnderstood(
            f"expected a process that reads messages of version {_words(READ)}, got one that reads"
            f" {', '.join(map(str, theirs))}"
        )
    return max(both)


def _words(versions: Collection[int]) -> str:
    return " or ".join(map(str, versions))


def _check(kind: str, said: Mapping[str, Any]) -> None:
    """Raises `NotUnderstood`."""
    for name, type_ in KINDS[kind].items():
        value = said.get(name)
        # A truth is a number to Python.
        if not isinstance(value, type_) or (type_ is NUMBER and isinstance(value, bool)):
            raise NotUnderstood(
                f"expected {name!r} of a message {kind!r} to be {type_.__name__}, got {value!r:.40}"
            )
