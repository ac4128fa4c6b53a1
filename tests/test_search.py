"""Who looks on the site for what another program has, in that program's words, has it in two clicks: on what
the search finds first, and on a link there.
"""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from urllib.parse import unquote

import pytest

from tests.web.browser import Page, chromium

pytestmark = pytest.mark.real

TOP = Path(__file__).parents[1]

ASKED = {
    "drain before maintenance": "service.html#the-end",
    "show sess": "status.html",
    "termination cause": "status.html#a-sessions-story",
    "readiness": "web.html#health",
    "maxconn": "configuration.html#listen-where-clients-connect",
    "prometheus metrics": "web.html#metrics",
    "PAUSE RESUME": "switching.html#pause-and-resume",
    "upgrade without losing clients": "upgrade.html",
    "rotate certificate": "tls.html#exchange",
    "max connection lifetime": "configuration.html#listen-where-clients-connect",
    "watchdog": "service.html",
    "NBD_REP_ERR_POLICY": "troubleshooting.html#by-the-protocols-name",
    "Connection refused": "troubleshooting.html#by-the-protocols-name",
    "pidfile": "configuration.html#on-the-command-line",
    "multi-conn": "connections.html#when-several-connections-are-used",
    "restart of server": "connections.html#when-a-connection-is-lost",
    "socket group permissions": "configuration.html#listen-where-clients-connect",
    "tickets": "tickets.html",
    "expected CN": "howto/backup-proxy.html",
    "dirty bitmaps": "configuration.html#export-which-names-lead-where",
}
"""What is typed, and where it is answered. Each program of `docs/questions.md` has some."""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site, and where it is served."""
    there = tmp_path_factory.mktemp("site")
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        str(there),
    ]
    run(build, cwd=TOP, check=True)
    handler = functools.partial(_Quiet, directory=str(there))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


FOUND = '[...document.querySelectorAll(".md-search-result__item:first-child > a")]'
"""What is shown of the first result: the page, and those of its parts that are meant most."""

TYPE = """
(() => {
  const field = document.querySelector(".md-search__input");
  field.focus();
  field.value = %s;
  field.dispatchEvent(new KeyboardEvent("keyup"));
})()
"""

BELOW = """
(() => {
  const links = [];
  let each = document.getElementById(%s);
  do {
    links.push(...[each, ...each.querySelectorAll("a")].map(link => link.href));
    each = each.nextElementSibling;
  } while (each && !/^H[1-6]$/.test(each.tagName));
  return links;
})()
"""
"""Where the links between a heading and the next lead."""


async def found_first(page: Page, typed: str) -> str:
    """Look for something; give where the first of these parts is."""
    for text, there in (("", f"{FOUND}.length === 0"), (typed, f"{FOUND}.length > 1")):
        await page.run(TYPE % json.dumps(text))
        await page.until(there, f"something is found for {text!r}" if text else "nothing is shown")
    said = await page.run(f"{FOUND}[1].href")
    assert isinstance(said, str)
    return unquote(said)


async def test_what_others_call_it_is_found(site: str, workdir: Path) -> None:
    async with chromium(workdir) as browser:
        page = await browser.page()
        await page.go(f"{site}index.html")
        await page.until('document.querySelector(".md-search__input")')
        first = {typed: await found_first(page, typed) for typed in ASKED}

        await page.go(f"{site}questions.html")
        await page.until('document.readyState === "complete"')
        for typed, answer in ASKED.items():
            if first[typed] == site + answer:
                continue
            there, _, heading = first[typed].partition("#")
            assert there == f"{site}questions.html", (typed, first[typed])
            assert site + answer in await page.run(BELOW % json.dumps(heading)), (typed, heading)
