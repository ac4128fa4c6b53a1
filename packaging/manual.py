"""Writes what is installed beside the program: manual pages, and completions for bash, zsh and fish.

`python packaging/manual.py DIRECTORY` makes `share/` in there, as it is below /usr. All of it is made of what
the program itself says of its verbs (`verbs.py`) and of its configuration (`keys.py`); completions are
cyclopts's. Nothing in it depends on when or where it is made.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from keys import Key, Table, tables
from verbs import PROGRAM, Option, Verb, program

COMPLETIONS = {
    "bash": f"bash-completion/completions/{PROGRAM}",
    "zsh": f"zsh/site-functions/_cyclopts_{PROGRAM}",
    "fish": f"fish/vendor_completions.d/{PROGRAM}.fish",
}
"""Where each shell looks, below share/. zsh takes a file for the function that it has the name of."""

STATUSES = (
    ("0", "Done."),
    ("1", "It cannot be done: the configuration or the machine is to blame."),
    ("2", "The command line is to blame."),
    ("3", "Done, but something has to be seen to."),
)
"""As `gateway.cli` has it."""

ENVIRONMENT = (
    ("NBD_GATEWAY_PUMP", "Set to 0: do without the compiled pump."),
    ("NO_COLOR", "Set to anything: no colours."),
)


def write(directory: Path) -> None:
    """Write all files below a directory, which is made if need be. Raises `OSError`."""
    for name, text in (pages() | dict(completions())).items():
        file = directory / "share" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Give the name of each manual page's file, and what is in it."""
    whole = program()
    found = {f"man/man1/{page_of(verb)}.1": page(verb, whole) for verb in whole.all()}
    return found | {f"man/man5/{PROGRAM}.toml.5": configuration(tables())}


def completions() -> Iterator[tuple[str, str]]:
    """Give the name of each shell's file, and what is in it."""
    from gateway.cli import app

    for shell, name in COMPLETIONS.items():
        yield name, app.generate_completion(prog_name=PROGRAM, shell=shell)  # type: ignore[arg-type] # a Literal


def page_of(verb: Verb) -> str:
    """Give the name of a verb's page."""
    return "-".join((PROGRAM, *verb.words))


# ---- pages, in the macros of man(7) ----


def page(verb: Verb, whole: Verb) -> str:
    """Give the page of a verb, or of the whole program."""
    name = page_of(verb)
    lines = [
        _title(name, 1),
        ".SH NAME",
        f"{_text(name)} \\- {_text(verb.summary)}",
        ".SH SYNOPSIS",
        f".B {_text(verb.usage)}",
        ".SH DESCRIPTION",
        _text(verb.summary),
        *_paragraphs(verb.text),
    ]
    if verb.verbs:
        lines.append(".SH VERBS")
        for each in verb.verbs:
            lines += [".TP", f".BR {_text(page_of(each))} (1)", _text(each.summary)]
    for head, options in (("ARGUMENTS", verb.arguments), ("OPTIONS", verb.options)):
        if options:
            lines += [f".SH {head}", *_options(options)]
    lines += [".SH EXIT STATUS", *_terms(STATUSES)]
    if verb is whole:
        lines += [".SH ENVIRONMENT", *_terms(ENVIRONMENT)]
    others = [page_of(each) for each in whole.all() if each.words == verb.words[:-1]]
    also = [*(f"{each} (1)" for each in others if each != name), f"{PROGRAM}.toml (5)"]
    lines += [".SH SEE ALSO", *(f".BR {_text(each)}{comma}" for each, comma in _with_commas(also))]
    return "\n".join(lines) + "\n"


def configuration(whole: Iterable[Table]) -> str:
    """Give the page of the configuration."""
    lines = [
        _title(f"{PROGRAM}.toml", 5),
        ".SH NAME",
        f"{_text(PROGRAM)}.toml \\- configuration of {_text(PROGRAM)}",
        ".SH DESCRIPTION",
        "A file in TOML 1.0. A key that does not exist is an error. Durations are in seconds.",
        f".B {_text(PROGRAM)} init",
        "writes one that explains itself,",
        f".B {_text(PROGRAM)} check",
        "says what is wrong with one.",
    ]
    for table in whole:
        lines += [f".SH {_text(table.head or 'TOP OF THE FILE')}", _text(table.text)]
        for key in table.keys:
            lines += [".TP", f".B {_text(key.name)}", _text(meaning(key))]
    lines += [".SH SEE ALSO", f".BR {_text(PROGRAM)} (1)"]
    return "\n".join(lines) + "\n"


def meaning(key: Key) -> str:
    """Give what a key is, with its choices and its default."""
    said = [key.text]
    if key.choices:
        said.append(f"One of {', '.join(key.choices)}.")
    if key.required:
        said.append("Required.")
    elif key.default is not None:
        said.append(f"Default: {key.default}.")
    return " ".join(said)


def option(each: Option) -> str:
    """Give how an option is typed: `--listen, -l STR`."""
    names = ", ".join(each.names)
    return f"{names} {each.value}".rstrip()


def _title(name: str, section: int) -> str:
    from gateway import __version__

    return f'.TH "{_text(name.upper())}" {section} "" "{PROGRAM} {__version__}"'


def _options(options: Iterable[Option]) -> Iterator[str]:
    return _terms((option(each), _with_choices(each)) for each in options)


def _with_choices(each: Option) -> str:
    return f"{each.text} [{', '.join(each.choices)}]" if each.choices else each.text


def _terms(terms: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in terms:
        yield from (".TP", f".B {_text(term)}", _text(text))


def _paragraphs(paragraphs: Iterable[str]) -> Iterator[str]:
    for each in paragraphs:
        if each.startswith(" "):
            yield from (".PP", ".EX", *map(_text, each.splitlines()), ".EE")
        else:
            yield from (".PP", *map(_text, each.splitlines()))


def _with_commas(each: list[str]) -> Iterator[tuple[str, str]]:
    return zip(each, [*[" ,"] * (len(each) - 1), ""], strict=True)


def _text(text: str) -> str:
    """Give text as man(7) takes it: what is typed has to be found and copied as it is typed."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python packaging/manual.py DIRECTORY")
    write(Path(sys.argv[1]))
