"""What several workers cannot do (docs/workers.md): see `checks.py`, which asks this.

Workers share the listeners, and nothing that is counted. So whatever would be counted in each of them by itself
is refused here, with what to write instead: a limit that is quietly as many times as large is none.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from gateway.config.data import Data, Finding, Vocabulary, array_of, tables_of, target_of
from gateway.config.exports import exact_name
from gateway.uri import NbdUri

_OF_ONE = {
    "tickets": "exports that are made at run time are not yet known to several workers",
}


def workers(data: Data, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Find what would not be true with as many workers as are wanted."""
    wanted = data.get("workers", 1)
    if wanted != "auto" and (type(wanted) is not int or wanted <= 1):
        return
    said = f'workers = "{wanted}"' if wanted == "auto" else f"workers = {wanted}"
    for path, upstream in tables_of(data, "upstream"):
        target = target_of(upstream)
        if target is not None and not isinstance(target, NbdUri):
            yield (
                (*path, "uri"),
                f"this server is in the process that serves it, and with {said} each worker would have another"
                " one: write workers = 1, or run it as a server of its own",
            )
    for key, text in _OF_ONE.items():
        if key in data:
            yield (key,), f"{text}: with {said} leave [{key}] out, or write workers = 1"
    if vocabulary is not None:
        what = f"with {said} each worker would count its own: write workers = 1, or"
        there = "are all in one worker"
        yield from counted(data, vocabulary, what, there, together=True)


def counted(
    data: Data, vocabulary: Vocabulary, what: str, there: str, *, together: bool
) -> Iterator[Finding]:
    """Find policies that count sessions which may be in several processes. An export's are all in one, for its
    disk has a home. `what` says what is wrong with that, and `there` where an export's are. `together`: some
    policies count for all these processes, which have memory in common.
    """
    for header in ("rule", "export"):
        for path, table in array_of(data, header):
            name, uses = table.get("name"), table.get("policies")
            if header == "export" and isinstance(name, str) and exact_name(name) is not None:
                continue
            for i, use in enumerate(uses if isinstance(uses, list) else ()):
                if isinstance(use, dict) and _scope(use, vocabulary) == "place":
                    if together and "counted" in vocabulary.hooks(vocabulary.policy(use["use"])):
                        continue  # for all workers together
                    yield (
                        (*path, "policies", i),
                        f"{use['use']} counts all that pass here, and {what} move it into an [[export]] with an"
                        f" exact name, whose sessions {there}",
                    )


def _scope(use: Data, vocabulary: Vocabulary) -> str:
    """Give of which sessions a policy knows something together; each by itself, if it is misspelt."""
    options = {key: use[key] for key in use if key not in ("use", "mode")}
    try:
        policy = vocabulary.policy(use["use"]).model_validate(options, by_alias=True, by_name=False)
    except (LookupError, ValidationError):  # of which others have complained
        return "session"
    return vocabulary.remembers(policy)
