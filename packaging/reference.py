"""Pages of the site that are made of the code, and kept nowhere else.

verbs.md has what `--help` knows of each verb (`verbs.py`), keys.md what the configuration's models say of
each key (`keys.py`). mkdocs is given them by `pages.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from keys import Table, tables
from manual import ENVIRONMENT, STATUSES, meaning, option
from verbs import PROGRAM, Option, Verb, program


def verbs_page(whole: Verb) -> str:
    """Give verbs.md."""
    lines = [
        "# Verbs",
        "",
        "All that `nbd-gateway VERB --help` says, on one page.",
        "",
        "| exit status | |",
        "|---|---|",
        *(f"| {status} | {text} |" for status, text in STATUSES),
        "",
        "| environment | |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in ENVIRONMENT),
    ]
    for verb in whole.all():
        if verb.words:
            lines += _verb(verb)
    return "\n".join(lines) + "\n"


def _verb(verb: Verb) -> Iterator[str]:
    yield from ("", f"{'#' * (1 + len(verb.words))} `{' '.join(verb.words)}`", "")
    yield from ("```", verb.usage, "```", "", _prose(verb.summary))
    for each in verb.text:
        yield ""
        if each.startswith(" "):
            yield from ("```", *(line.removeprefix("  ") for line in each.splitlines()), "```")
        else:
            yield _prose(" ".join(each.split()))
    options = (*verb.arguments, *verb.options)
    if options:
        yield from ("", "| | |", "|---|---|", *map(_option, options))


def _option(each: Option) -> str:
    choices = (
        f" One of {', '.join(f'`{choice}`' for choice in each.choices)}." if each.choices else ""
    )
    return f"| `{option(each)}` | {_cell(each.text)}{choices} |"


def keys_page(whole: Iterable[Table]) -> str:
    """Give keys.md."""
    lines = [
        "# Keys of gateway.toml",
        "",
        "Every key, as `nbd-gateway schema` has it for editors.",
        "[Configuration](configuration.md) says more of most of them, and why;",
        f"`man {PROGRAM}.toml` has this page.",
    ]
    for table in whole:
        lines += ["", f"## {f'`{table.head}`' if table.head else 'Top of the file'}", ""]
        lines += [f"{_prose(table.text)}", "", "| key | |", "|---|---|"]
        lines += [f"| `{key.name}` | {_cell(meaning(key))} |" for key in table.keys]
    return "\n".join(lines) + "\n"


def _prose(text: str) -> str:
    """Give text with what Markdown would take for marks of its own as it is."""
    return text.replace("*", "\\*").replace("<", "&lt;").replace("_", "\\_")


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def pages() -> dict[str, str]:
    """Give all of them, by their names on the site."""
    return {"verbs.md": verbs_page(program()), "keys.md": keys_page(tables())}
