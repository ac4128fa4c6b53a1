"""Chromium without a screen, spoken to over two pipes by its own protocol (Chrome DevTools Protocol): no driver
and no library is needed for that.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.tools.patience import HANG_SECONDS

PROGRAM = "chromium"

OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it has none as root, and reads our own page alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
)

BECOME = """
import os, sys
for number, end in enumerate(sys.argv[1:3], start=100):
    os.dup2(int(end), number)
os.dup2(100, 3), os.dup2(101, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads from descriptor 3 and writes to 4, whatever they are here."""

LOOK_AGAIN_SECONDS = 0.05
"""Between two looks at a page that offers no event for what is waited for."""

KEYS = {
    "Tab": ("Tab", 9),
    "Enter": ("Enter", 13),
    "Escape": ("Escape", 27),
    "ArrowLeft": ("ArrowLeft", 37),
}


class Page:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    async def tell(self, method: str, **arguments: object) -> Any:
        """Have Chromium do something, by the protocol's name."""
        return await self._browser.tell(method, arguments, self._session)

    async def go(self, address: str) -> None:
        """Open an address."""
        await self.tell("Page.enable")
        await self.tell("Runtime.enable")
        await self.tell("Log.enable")
        await self.tell("Page.navigate", url=address)

    async def run(self, expression: str) -> Any:
        """Give what an expression comes to."""
        said = await self._evaluated(expression)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def _evaluated(self, expression: str) -> Any:
        return await self.tell(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )

    async def until(self, expression: str, what: str = "") -> None:
        """Wait until an expression is true. What it is about may not be there yet."""
        said: dict[str, Any] = {}
        with trio.move_on_after(HANG_SECONDS):
            while True:
                said = await self._evaluated(f"Boolean({expression})")
                if "exceptionDetails" not in said and said["result"]["value"]:
                    return
                await trio.sleep(LOOK_AGAIN_SECONDS)
        raise AssertionError(f"waited in vain until {what or expression}: {said}")

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key."""
        name, code = KEYS[key]
        for kind in ("rawKeyDown", "keyUp"):
            await self.tell(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=code,
                modifiers=8 if shift else 0,
                **({"text": "\r"} if key == "Enter" and kind == "rawKeyDown" else {}),
            )
            if key == "Enter" and kind == "rawKeyDown":
                await self.tell("Input.dispatchKeyEvent", type="char", text="\r", key=name)

    async def size(self, width: int, height: int, *, theme: str = "light") -> None:
        """Have a window of so many pixels, where people like it light or dark."""
        await self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        await self.tell(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": theme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )

    async def picture(self, path: Path, *, whole: bool = True) -> None:
        """Take a picture, of all of the page or of what is in the window."""
        said = await self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))

    @property
    def complaints(self) -> list[str]:
        """What the console says is wrong: errors of scripts, and what the policy has kept from being done."""
        return self._browser.complaints


class Browser:
    """Chromium that runs."""

    def __init__(self, requests: int, answers: trio.lowlevel.FdStream) -> None:
        self._requests = trio.lowlevel.FdStream(requests)
        self._answers = answers
        self._number = 0
        self._waiting: dict[int, tuple[trio.Event, dict[str, Any]]] = {}
        self.complaints: list[str] = []

    async def tell(self, method: str, arguments: Mapping[str, object], session: str | None) -> Any:
        """Have it do something; give its answer."""
        self._number += 1
        number = self._number
        said: dict[str, Any] = {"id": number, "method": method, "params": arguments}
        if session is not None:
            said["sessionId"] = session
        there, answer = self._waiting[number] = (trio.Event(), {})
        await self._requests.send_all(json.dumps(said).encode() + b"\0")
        with trio.fail_after(HANG_SECONDS):
            await there.wait()
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def hear(self) -> None:
        """Hear what it says, until it ends."""
        rest = b""
        async for data in self._answers:
            *lines, rest = (rest + data).split(b"\0")
            for line in lines:
                said = json.loads(line)
                if "id" in said:
                    there, answer = self._waiting.pop(said["id"])
                    answer.update(said)
                    there.set()
                else:
                    self._note(said)

    def _note(self, said: Mapping[str, Any]) -> None:
        what = said["params"]
        if said["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(what["exceptionDetails"]))
        elif said["method"] == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.complaints.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")

    async def page(self) -> Page:
        """Open a page."""
        made = await self.tell("Target.createTarget", {"url": "about:blank"}, None)
        attached = await self.tell(
            "Target.attachToTarget", {"targetId": made["targetId"], "flatten": True}, None
        )
        return Page(self, attached["sessionId"])


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Browser]:
    """Have a Chromium, which keeps its files in a directory."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    options = (*OPTIONS, f"--user-data-dir={directory / 'chromium'}")
    command = [sys.executable, "-c", BECOME, str(theirs_in), str(theirs_out), PROGRAM, *options]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            command,
            stdin=-3,
            stdout=-3,
            stderr=-3,
            pass_fds=(theirs_in, theirs_out),
            env={**os.environ, "HOME": str(directory)},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        browser = Browser(ours_out, trio.lowlevel.FdStream(ours_in))
        nursery.start_soon(browser.hear)
        try:
            yield browser
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(5):
                    await browser.tell("Browser.close", {}, None)
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            nursery.cancel_scope.cancel()
