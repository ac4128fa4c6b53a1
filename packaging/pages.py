"""What mkdocs is told of this repository: pages and files that are not below docs/, or nowhere
(`reference.py`).

In a checkout the links of docs/ lead out of it (`../CONTRIBUTING.md`, `../examples/tls.toml`), for there they
are read as well. On the site these are pages, and files to load, of its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from posixpath import relpath
from typing import Any

from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parents[1]

PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository, and what they are called on the site."""

FOLDERS = {"examples": "examples.md", "deploy": "howto/kubernetes.md"}
"""Whose files can be loaded from the site, and the page that a link to the folder itself leads to."""

BOOSTS = {
    **dict.fromkeys(("questions.md", "troubleshooting.md"), 4.0),
    **dict.fromkeys(("log.md", "changelog.md", "quirks.md"), 0.2),
    **dict.fromkeys(("contributing.md", "how-it-works.md", "writing-a-policy.md"), 0.2),
}
"""How much the site's search makes of a page. Lists of hundreds of names have each word somewhere, and who
searches hardly ever means them."""

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies beside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(TOP / source)))
    sys.path.append(str(TOP / "packaging"))
    from reference import pages

    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    for folder in FOLDERS:
        for path in sorted((TOP / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = str(path.relative_to(TOP))
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links of the repository lead to where their targets are on the site, and say what a search makes of
    the page.
    """
    there = page.file.src_uri
    if there in BOOSTS:
        page.meta["search"] = {"boost": BOOSTS[there]}
    source = {name: path for path, name in PAGES.items()}.get(there, f"docs/{there}")
    return LINK.sub(lambda found: moved(found[1], source, there), markdown)


def moved(link: str, source: str, there: str) -> str:
    """Give a link of a file of the repository as it has to be on that file's page."""
    target = normal(f"{PurePosixPath(source).parent}/{link}")
    is_ours = target in PAGES or target.startswith(("docs/", *(f"{each}/" for each in FOLDERS)))
    if not is_ours and target not in FOLDERS:
        return link  # mkdocs says that it leads nowhere
    name = PAGES.get(target) or FOLDERS.get(target) or target.removeprefix("docs/")
    return relpath(name, str(PurePosixPath(there).parent))


def normal(path: str) -> str:
    """Give a path without `.` and `..`."""
    return relpath(f"/{path}", "/")
