"""The verbs of the command line, as values: what `--help` knows of each.

Manual pages (`manual.py`) and the reference (`reference.py`) are made of them, so neither says what `--help`
does not. Nothing but cyclopts and `gateway.cli` is loaded for it: the build of a wheel has no more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
"""The repository; what runs these modules may be anywhere."""

PROGRAM = "nbd-gateway"
FOR_ALL = ("--help", "-h", "--version", "-V")
"""Options that every verb has; its page says nothing of them."""


@dataclass(frozen=True)
class Option:
    """An argument or an option of a verb."""

    names: tuple[str, ...]
    """As one types them; of an argument, the word that stands for it."""
    value: str
    """The word that stands for its value; empty: it has none."""
    text: str
    choices: tuple[str, ...]
    required: bool


@dataclass(frozen=True)
class Verb:
    """A verb, or (without words) the program itself."""

    words: tuple[str, ...]
    summary: str
    """The first paragraph of its help."""
    text: tuple[str, ...]
    """The other paragraphs, their lines as they stand: what is indented is an example."""
    arguments: tuple[Option, ...]
    options: tuple[Option, ...]
    verbs: tuple[Verb, ...]

    @property
    def usage(self) -> str:
        """What one types, with words for what one chooses."""
        said = [PROGRAM, *self.words]
        if self.verbs:
            said.append("VERB")
        if self.options:
            said.append("[OPTIONS]")
        for each in self.arguments:
            word = each.names[0]
            said.append(word if each.required else f"[{word}]")
        return " ".join(said)

    def all(self) -> Iterator[Verb]:
        """It, and all below it, as `--help` lists them."""
        yield self
        for each in self.verbs:
            yield from each.all()


def program() -> Verb:
    """Give the program with all its verbs."""
    if str(TOP) not in sys.path:
        sys.path.insert(0, str(TOP))  # this repository's, whatever else is installed
    from gateway.cli import VERBS, app

    for verb in VERBS:
        app[verb]  # imports it
    return _verb(())


def _verb(words: tuple[str, ...]) -> Verb:
    from gateway.cli import app

    _, path, _ = app.parse_commands(list(words))
    paragraphs = path[-1].help.partition("\n:param ")[0].strip().split("\n\n")
    arguments, options, below = [], [], []
    # What `--help` prints, and as it does; cyclopts has no name for it that is for others.
    with app.app_stack(path):
        panels = [panel for _, panel in app._assemble_help_panels(list(words), "plaintext")]
    for panel in panels:
        for entry in panel.entries:
            names = (*entry.positive_names, *entry.positive_shorts, *entry.negative_names)
            if panel.format == "command":
                below += [name for name in names if not name.startswith("-")]
                continue
            text = str(entry.description.primary_renderable) if entry.description else ""
            option = Option(
                names or (str(entry.positional_label),),
                "" if entry.metavar is None or not names else entry.metavar,
                " ".join(text.split()),
                tuple(entry.choices or ()),
                entry.required,
            )
            if entry.positional_label is not None:
                arguments.append(option)
            elif option.names[0] not in FOR_ALL:
                options.append(option)
    return Verb(
        words,
        " ".join(paragraphs[0].split()),
        tuple(paragraphs[1:]),
        tuple(arguments),
        tuple(options),
        tuple(_verb((*words, each)) for each in below),
    )
