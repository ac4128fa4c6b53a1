"""Takes the pictures of docs/web.md, of the demo at work: `python -m tests.web.pictures` puts them there. The
test of the page takes the same, of a demo that has just begun, and throws them away.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.tools.patience import HANG_SECONDS
from tests.web.browser import Page, chromium

DOCS = Path(__file__).parents[2] / "docs"

PICTURES = {
    "web-light.png": (1280, 820, "light"),
    "web-dark.png": (1280, 820, "dark"),
    "web-narrow.png": (360, 820, "light"),
}

WORK_SECONDS = 75.0
"""How long the clients of the demo are at work before the pictures for the docs: so there is a curve to see."""

SLOW = "document.querySelector('#attention-list')?.textContent.includes('stuck')"
"""What whoever looks at the page is to find: the client that does not get on."""


@asynccontextmanager
async def demo() -> AsyncIterator[str]:
    """Have the demo run; give the address of its page."""
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "gateway", "demo"], stdout=-1
        )
        assert process.stdout is not None
        said = b""
        try:
            with trio.fail_after(HANG_SECONDS):
                while not (found := re.search(rb"http://\S+#token=\S+", said)):
                    said += await process.stdout.receive_some()
            yield found[0].decode()
        finally:
            with trio.CancelScope(shield=True):
                process.terminate()
                await process.wait()
        nursery.cancel_scope.cancel()


async def take(page: Page, address: str, directory: Path) -> None:
    """Take all pictures of the page at an address."""
    for picture, (width, height, theme) in PICTURES.items():
        await page.size(width, height, theme=theme)
        await page.go(address)
        await page.until("document.querySelectorAll('#rows-sessions tr').length > 1")
        await page.until(SLOW)
        await page.picture(directory / picture, whole=False)


async def main(directory: Path) -> None:
    async with demo() as address:
        await trio.sleep(WORK_SECONDS)
        with tempfile.TemporaryDirectory(prefix="nbd-") as name:
            async with chromium(Path(name)) as browser:
                await take(await browser.page(), address, directory)


if __name__ == "__main__":
    trio.run(main, DOCS)
