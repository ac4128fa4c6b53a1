"""nbd-gateway policies: what can be written in `policies = [ ... ]`, and the page of each."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from gateway.access.loading import Option

OURS = "policies"
"""The package that comes with the gateway."""

INTRODUCTION = """\
# Policies: who may do what, and how an export is shown

Policies are listed in an `[[export]]` or in a `[[rule]]`, in the order in which a request meets them:
`policies = [ { use = "NAME", ... } ]`. `nbd-gateway policies` lists those that are installed, and
`nbd-gateway policies NAME` explains one. [Writing a policy](writing-a-policy.md) says how to make your own.
This page is what `nbd-gateway policies --markdown` prints.
"""


def policies(
    name: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    markdown: bool = False,
) -> int:
    """List the policies that are installed, or explain one.

    :param name: The policy to explain.
    :param as_json: Print JSON, for programs.
    :param markdown: Print the page docs/policies.md.
    """
    from gateway.access.loading import PolicyError, catalogue
    from gateway.cli import UsageError, complain

    if as_json and markdown:
        raise UsageError("expected --json or --markdown, got both")
    if markdown and name is not None:
        raise UsageError(f'--markdown prints all policies of the gateway; got "{name}" too')
    try:
        if markdown:
            print(page(), end="")
            return 0
        pages = [_page(name, catalogue().names().get(name, ""))] if name else _pages()
    except PolicyError as error:
        complain(str(error))
        return 1
    if as_json:
        import json

        told = [asdict(each) for each in pages]
        print(json.dumps(told[0] if name else told, indent=2))
    elif name:
        _explain(pages[0])
    else:
        _list(pages)
    return 0


@dataclass(frozen=True, slots=True)
class Page:
    """The page of a policy."""

    name: str
    package: str
    summary: str
    text: str
    """What its docstring says after the first line."""
    options: list[Option]
    commands: list[str]
    """The commands that may have to go through its hooks, which makes them slower."""
    hooks: list[str]


def _pages() -> list[Page]:
    from gateway.access.loading import catalogue

    return [_page(name, package) for name, package in catalogue().names().items()]


def _page(name: str, package: str) -> Page:
    from gateway.access.loading import HOOKS, catalogue, options
    from gateway.policy import Policy, hooks_of

    policy = catalogue().find(name)
    docstring = sys.modules[policy.__module__].__doc__ or ""
    summary, _, text = docstring.strip("\n").partition("\n")
    used = [hook for hook in HOOKS if getattr(policy, hook) is not getattr(Policy, hook)]
    commands = [command.name for command in sorted(hooks_of(policy))]
    return Page(name, package, summary, text.strip("\n").rstrip(), options(policy), commands, used)


def _cost(page: Page) -> str:
    if not page.commands:
        return "nothing. It is compiled into the table that every request is checked against anyway"
    commands = ", ".join(page.commands)
    return f"{commands}, where this policy has to look at each one; `explain` says where"


def _list(pages: list[Page]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("policy", "what it does"):
        table.add_column(title)
    for page in pages:
        foreign = "" if page.package == OURS else f" (of {page.package})"
        table.add_row(page.name + foreign, page.summary)
    Console().print(table)


def _explain(page: Page) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    foreign = "" if page.package == OURS else f", of the package {page.package}"
    console.print(Text(f"{page.name}{foreign}: {page.summary}\n\n{page.text}\n"), soft_wrap=True)
    if page.options:
        table = Table()
        for title in ("option", "what it is", "default", "what it does"):
            table.add_column(title)
        for option in page.options:
            row = (option.name, option.type, _default(option), option.description)
            table.add_row(*map(Text, row))
        console.print(table)
    console.print(Text(f"hooks: {', '.join(page.hooks) or 'none'}\nwhat it slows: {_cost(page)}"))


def _default(option: Option) -> str:
    return "(has to be given)" if option.required else option.default


def page() -> str:
    """Give docs/policies.md."""
    lines = [INTRODUCTION]
    for page in _pages():
        if page.package == OURS:
            lines += _section(page)
    return "\n".join(lines)


def _section(page: Page) -> list[str]:
    lines = [f"## `{page.name}`", "", page.summary, "", page.text, ""]
    if page.options:
        lines += ["| option | what it is | default | what it does |", "| --- | --- | --- | --- |"]
        for option in page.options:
            default = _default(option)
            if option.default:
                default = f"`{default}`"
            cells = (f"`{option.name}`", option.type, default, option.description)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return [*lines, f"What it slows: {_cost(page)}.", ""]
