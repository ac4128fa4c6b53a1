"""What the documentation and the examples say about the configuration is true."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from gateway.cli.vocabulary import vocabulary
from gateway.config import (
    Admin,
    Certificate,
    Config,
    Control,
    Export,
    Listen,
    Log,
    Rule,
    Upstream,
    Who,
    load,
    parse,
)
from gateway.config.fleet import Fleet
from gateway.config.models import Tickets

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
ABOUT_RULES = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_OTHERS = {"writing-a-policy.md"}
"""One of its blocks is no configuration, and one has a policy that the page installs: its own test has them."""
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))

SECTIONS: dict[str, type[BaseModel]] = {
    "Top of the file": Config,
    "`[[listen]]`": Listen,
    "`[upstream.NAME]`": Upstream,
    "`[[export]]`": Export,
    "`[[rule]]`": Rule,
    "`who`": Who,
    "`certificate` of `who`": Certificate,
    "`[log]`": Log,
    "`[control]`": Control,
    "`[admin]`": Admin,
    "`[tickets]`": Tickets,
    "`[fleet]`": Fleet,
}


def section(title: str) -> str:
    [_, text] = re.split(rf"(?m)^###? {re.escape(title)}.*$", MANUAL)
    return re.split(r"\n###? ", text)[0]


@pytest.mark.parametrize("title", SECTIONS)
def test_manual_has_exactly_the_keys(title: str) -> None:
    documented = re.findall(r"(?m)^\| `([a-z-]+)` \|", section(title))
    keys = [field.alias for field in SECTIONS[title].model_fields.values()]
    if SECTIONS[title] is Config:  # the top of the file has the other sections too
        others = ("listen", "upstream", "export", "rule", "log", "control", "admin", "tickets")
        keys = [key for key in keys if key != "fleet"]
        keys = [key for key in keys if key not in others]
    assert documented == keys


@pytest.mark.parametrize("title", SECTIONS)
def test_manual_has_the_defaults(title: str) -> None:
    for key, default in re.findall(r'(?m)^\| `([a-z-]+)` \| `?([\d"a-z]*)`? \|', section(title)):
        field = SECTIONS[title].model_fields[key.replace("-", "_")]
        if field.is_required():
            assert default == "required"
        elif field.default is not None:
            plain = str(field.default).lower() if field.annotation is bool else str(field.default)
            if key.endswith("-mode"):
                plain = f"{field.default:04o}"
            assert default in (plain, f'"{plain}"')


@pytest.mark.parametrize(
    ("page", "block"),
    [
        (page.name, block)
        for page in PAGES
        if page.name not in WITH_OTHERS
        for block in re.findall(r"(?ms)^```toml\n(.*?)^```", page.read_text(encoding="utf-8"))
    ],
)
def test_blocks_of_the_manual(page: str, block: str) -> None:
    config = parse(block, page, vocabulary())
    assert config.exports or config.tickets.are_kept


def test_there_are_blocks_and_examples() -> None:
    assert MANUAL.count("```toml") >= 4
    assert ABOUT_RULES.count("```toml") >= 4
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples(path: Path) -> None:
    assert load(path, vocabulary()).exports


def test_names_of_the_exports_example() -> None:
    config = load(ROOT / "examples/exports.toml")
    routes = {name: config.route(name) for name in ("vm-template", "vm-1", "", "backup/x/y", "x")}
    assert {
        name: route and (route.upstream, route.upstream_name) for name, route in routes.items()
    } == {
        "vm-template": ("archive", "debian-12-2024-01"),
        "vm-1": ("fast", "vm-1"),
        "": ("fast", "vm-default"),
        "backup/x/y": ("archive", "backup/x/y"),
        "x": None,
    }


def test_listeners_of_the_old_clients_example() -> None:
    config = load(ROOT / "examples/old-clients.toml")
    assert [(listen.style, listen.export, listen.handshake_flags) for listen in config.listen] == [
        ("newstyle", "", ("FIXED_NEWSTYLE", "NO_ZEROES")),
        ("newstyle", "", ("FIXED_NEWSTYLE",)),
        ("oldstyle", "scratch", ("FIXED_NEWSTYLE", "NO_ZEROES")),
    ]
    route = config.route(config.listen[2].export)
    assert route is not None
    assert (route.upstream, route.upstream_name) == ("disks", "disk7")
