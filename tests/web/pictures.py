"""Takes the pictures of docs/web.md: `python -m tests.web.pictures`, of the demo that has run for a while."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import trio

from tests.web.browser import chromium

DOCS = Path(__file__).parents[2] / "docs"

PICTURES = {
    "web-light.png": (1280, 820, "light"),
    "web-dark.png": (1280, 820, "dark"),
    "web-narrow.png": (360, 820, "light"),
}

WORK_SECONDS = 75.0
"""How long the clients of the demo are at work before a picture is taken: so there is a curve to see."""


async def main() -> None:
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "gateway", "demo"], stdout=-1
        )
        assert process.stdout is not None
        said = b""
        while not (found := re.search(rb"http://\S+#token=\S+", said)):
            said += await process.stdout.receive_some()
        address = found[0].decode()
        await trio.sleep(WORK_SECONDS)
        with tempfile.TemporaryDirectory(prefix="nbd-") as name:
            async with chromium(Path(name)) as browser:
                page = await browser.page()
                for picture, (width, height, theme) in PICTURES.items():
                    await page.size(width, height, theme=theme)
                    await page.go(address)
                    await page.until("document.querySelectorAll('#rows-sessions tr').length > 1")
                    await page.until("document.querySelector('#attention-list li')")
                    await page.picture(DOCS / picture, whole=False)
        process.terminate()
        await process.wait()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
