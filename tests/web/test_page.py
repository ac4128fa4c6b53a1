"""The page in a browser: it shows what is so, does what it says, and can be used by everybody."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from gateway.web.app import STATIC
from tests.web.browser import Page, chromium
from tests.web.pages import FULL, Running, running
from tests.web.pictures import PICTURES, demo, take

pytestmark = pytest.mark.real

STRANGE = '<script>document.title="owned"</script><img src=x onerror=document.title="owned">'
"""What a client may have for a name."""

TURNED = "disk \u202etxt\u2066\n é 💾"
"""One that would turn around what stands behind it (RIGHT-TO-LEFT OVERRIDE), and has an end of a line."""

CONFIG = f"""
listen = [ {{ uri = "nbd://127.0.0.1:0" }} ]
[upstream.store]
uri = "memory:64M"
[upstream.old]
uri = "legacy:qemu-3.0"
[[export]]
name = "disk"
upstream = "store"
upstream-name = ""
[[export]]
name = '{STRANGE}'
upstream = "store"
upstream-name = ""
[[export]]
name = "old"
upstream = "old"
upstream-name = ""
"""

SEES = "document.querySelectorAll('#rows-sessions tr').length"

LOOKS = (Path(__file__).parent / "looks.js").read_text()

CURVE = (
    "document.querySelector('#chart-throughput .line.s0')?.getAttribute('d').match(/L/g)?.length"
)

LABEL = "document.querySelector('#chart-throughput').getAttribute('aria-label')"

NAMES = "[...document.querySelectorAll('#rows-exports td:first-child')].map((e) => e.textContent)"


async def looks(page: Page, what: str) -> list[str]:
    """Ask something of looks.js."""
    found: list[str] = await page.run(f"{LOOKS}; looks.{what}()")
    return found


async def use(gateway: Running, export: str) -> trio.Process:
    """Have a client that reads until it is ended."""
    options = [
        "--rw=randrw",
        "--bs=16k",
        "--size=32m",
        "--time_based",
        "--runtime=600",
        "--rate_iops=200",
    ]
    uri = f"{gateway.nbd}/{quote(export, safe='')}"
    return await trio.lowlevel.open_process(
        ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", *options],
        stdout=-3,
        stderr=-3,
        cwd=gateway.directory,
    )


async def press(page: Page, selector: str) -> None:
    await page.until(f"document.querySelector({selector!r})?.getClientRects().length", selector)
    await page.run(f"document.querySelector({selector!r}).click()")


async def yes(page: Page) -> None:
    """Say that it is meant, and wait until it is done."""
    await press(page, "#ask-yes")
    await page.until("!document.querySelector('#ask').open")


async def test_the_page(workdir: Path) -> None:
    async with running(workdir, CONFIG) as gateway, chromium(workdir) as browser:
        page = await browser.page()
        address = f"http://127.0.0.1:{gateway.port}/"
        await page.size(1280, 900)
        await page.go(f"{address}#token={FULL}")
        await page.until("document.querySelector('#health-text').textContent === 'Ready'")
        assert await page.run("location.href") == address  # the token is in no history
        assert await page.run(SEES) == 0

        clients = [await use(gateway, name) for name in ("disk", STRANGE)]
        try:
            await _shows_who_is_there(page)
            await _fits(page)
            await _is_reached_by_keyboard(page)
            await _does_what_it_says(page, gateway)
        finally:
            for client in clients:
                client.terminate()
                await client.wait()
        assert await page.run("document.title") == "nbd-gateway"
        assert not page.complaints


async def _shows_who_is_there(page: Page) -> None:
    await page.until(f"{SEES} === 2", "both sessions are there")
    await page.until(f"{CURVE} > 2", "the curve moves")
    await page.until("document.querySelector('#f-latency').textContent !== '–'", "latency is there")
    assert STRANGE in await page.run(NAMES)
    assert await page.run("document.querySelectorAll('main script, main img').length") == 0
    assert "read" in await page.run(LABEL)
    for made in ("make('p', {}, name)", "(say(p, name), p)"):
        shown = await page.run(
            "import('/static/dom.js').then(({ make, say }) => { const p = make('p'), name = "
            f"{json.dumps(TURNED)}; return {made}.textContent; }})"
        )
        assert shown == r"disk \u{202e}txt\u{2066}\u{a} é 💾"


async def _fits(page: Page) -> None:
    """Nothing goes over the edge, and everything can be read, in both themes."""
    for theme in ("light", "dark"):
        for width in (360, 768, 1280):
            await page.size(width, 800, theme=theme)
            assert await page.run("document.documentElement.scrollWidth") <= width, (theme, width)
        assert await looks(page, "faint") == [], theme
    await page.size(1280, 900)


async def _is_reached_by_keyboard(page: Page) -> None:
    assert await looks(page, "nameless") == []
    await page.run("document.activeElement.blur(), window.scrollTo(0, 0)")
    wanted = set(await looks(page, "controls"))
    reached: set[str] = set()
    for _ in range(2 * len(wanted)):
        await page.press("Tab")
        reached.add(await page.run(f"{LOOKS}; looks.focus()"))
        if wanted <= reached:
            break
    assert wanted <= reached, wanted - reached
    await page.run("document.querySelector('#chart-throughput').focus()")
    await page.press("ArrowLeft")
    assert "ago: read" in await page.run(LABEL)


async def _does_what_it_says(page: Page, gateway: Running) -> None:
    await press(page, "#rows-listeners button[data-does=drain]")
    await page.until("document.querySelector('#ask').open")
    await page.press("Escape")
    await page.until("!document.querySelector('#ask').open")
    assert not (await gateway.ask("/api/v1/status")).said["listeners"][0]["drained"]
    await press(page, "#rows-listeners button[data-does=drain]")
    assert await page.run("document.activeElement.id") == "ask-no"  # Return alone drains nothing
    await yes(page)
    await page.until("document.querySelector('#health-text').textContent === 'Drained'")
    assert (await gateway.ask("/api/v1/status")).said["listeners"][0]["drained"]
    await press(page, "#rows-listeners button[data-does=undrain]")
    await page.until("document.querySelector('#health-text').textContent === 'Ready'")

    await press(page, "#rows-exports button[data-does=pause]")
    await yes(page)
    await page.until(
        "document.querySelector('#attention-list')?.textContent.includes('Paused: disk')"
    )
    await press(page, "#rows-exports button[data-does=resume]:not([hidden])")
    await page.until("!document.querySelector('#attention-list')?.textContent.includes('Paused')")

    await press(page, "#rows-sessions button[data-does=disconnect]")
    await page.until("document.querySelector('#ask input[name=reason]') !== null")
    await page.run("document.querySelector('#ask input[name=reason]').value = 'for a test'")
    await yes(page)
    await page.until(f"{SEES} === 1")
    assert "disconnected-by-operator" in await gateway.logged("disconnected it: for a test")


async def test_who_may_only_look_is_shown_no_buttons_and_who_may_not_is_asked(
    workdir: Path,
) -> None:
    async with running(workdir, CONFIG) as gateway, chromium(workdir) as browser:
        page = await browser.page()
        await page.size(360, 740)
        await page.go(f"http://127.0.0.1:{gateway.port}/")
        await page.until("document.querySelectorAll('#rows-exports tr').length === 3")
        assert await page.run("document.querySelectorAll('td button[data-does]').length") == 0
        assert await page.run("document.querySelector('#me').textContent") == "may look"
        await press(page, "#sign-in")
        await page.run("document.querySelector('#ask input').value = 'wrong'")
        await press(page, "#ask-yes")
        await page.until(
            "document.querySelector('#ask-problem').textContent.includes('no such token')"
        )
        await page.run(f"document.querySelector('#ask input').value = '{FULL}'")
        await press(page, "#ask-yes")
        await page.until("document.querySelectorAll('td button[data-does]').length > 0")
        assert await page.run("document.documentElement.scrollWidth") <= 360
        complaints = [each for each in page.complaints if "401" not in each]
        assert not complaints


async def test_the_pictures_of_the_docs(workdir: Path) -> None:
    """They are of the demo, and whoever looks at it finds the slow client first, and where it is."""
    async with demo() as address, chromium(workdir) as browser:
        page = await browser.page()
        await take(page, address, workdir)
        for name, (width, height, _theme) in PICTURES.items():
            head = (workdir / name).read_bytes()[:24]
            assert head.startswith(b"\x89PNG")
            assert struct.unpack(">II", head[16:]) == (width, height)
        said = await page.run("document.querySelector('#attention-list').textContent")
        assert "of restore is stuck" in said
        assert "its client does not take its replies" in said
        await press(page, "#attention-list a")
        first = "document.querySelector('#rows-sessions tr').textContent"
        assert "Stuck: its client" in await page.run(first)
        assert not page.complaints


def test_texts_of_strangers_never_become_markup() -> None:
    """There is no way to it: what would make markup of text is nowhere used."""
    for script in STATIC.glob("*.js"):
        text = script.read_text()
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "srcdoc",
        ):
            assert way not in text, (script.name, way)
    page = (STATIC / "index.html").read_text()
    assert "style=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
