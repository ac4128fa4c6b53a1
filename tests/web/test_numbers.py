"""What real clients have counted, the gateway shows: the verbs, the API, metrics and the page, each to the last
request and byte.

fio is looked at while its sessions are there: its `exec_postrun` is run when all is answered, and before it
leaves. nbdcopy is, because it writes into a pipe that is full.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.tools.patience import HANG_SECONDS
from tests.web.browser import chromium
from tests.web.pages import CONFIG, LOOK, Running, running

pytestmark = pytest.mark.real

MIB = 1 << 20
COPIED = 64 * MIB
"""The whole disk."""

PIECE = 128 << 10
"""What nbdcopy asks for at a time: more than a pipe takes, so that it waits with the last one."""

Numbers = tuple[Counter[str], Counter[str]]
"""Requests and bytes, by command. Bytes are those of READ and WRITE."""

HOLDING = f"timeout {HANG_SECONDS:g} sh -c 'echo >>held; until [ -e go ]; do sleep 0.05; done'"


def numbers(requests: Mapping[str, int], sizes: Mapping[str, int]) -> Numbers:
    moved = {command: size for command, size in sizes.items() if command in ("READ", "WRITE")}
    return +Counter(requests), +Counter(moved)


def summed(several: Sequence[Mapping[str, Any]]) -> Numbers:
    """Give the numbers of several sessions, or of several totals."""
    requests, sizes = Counter[str](), Counter[str]()
    for each in several:
        requests.update(each["requests"])
        sizes.update(each["bytes"])
    return numbers(requests, sizes)


async def said(gateway: Running, *words: str) -> Any:
    """Give what a verb says as JSON."""
    done = await trio.run_process(
        [sys.executable, "-m", "gateway", *words, "--json", "--socket", "control"],
        capture_stdout=True,
        cwd=gateway.directory,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return json.loads(done.stdout)


async def in_metrics(gateway: Running) -> Numbers:
    text = (await gateway.ask("/metrics", token=LOOK)).body.decode()
    requests, sizes = Counter[str](), Counter[str]()
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.name == "nbd_gateway_requests_total":
                requests[sample.labels["command"]] += round(sample.value)
            if sample.name == "nbd_gateway_bytes_total":
                sizes[sample.labels["direction"].upper()] += round(sample.value)
    return numbers(requests, sizes)


async def of_all(gateway: Running) -> dict[str, Numbers]:
    """Give the numbers since the start, by who says so."""
    exports = await said(gateway, "exports")
    return {
        "status": summed([(await said(gateway, "status"))["totals"]]),
        "exports": summed([each["totals"] for each in exports["exports"]]),
        "api status": summed([(await gateway.ask("/api/v1/status")).said["totals"]]),
        "api exports": summed(
            [each["totals"] for each in (await gateway.ask("/api/v1/exports")).said["exports"]]
        ),
        "metrics": await in_metrics(gateway),
    }


async def of_sessions(gateway: Running, count: int) -> dict[str, Numbers]:
    """Give the numbers of so many sessions, by who says so."""
    shown = {
        "sessions": (await said(gateway, "sessions"))["sessions"],
        "top": (await said(gateway, "top"))["sessions"],
        "api sessions": (await gateway.ask("/api/v1/sessions")).said["sessions"],
    }
    assert {name: len(each) for name, each in shown.items()} == dict.fromkeys(shown, count)
    return {name: summed(each) for name, each in shown.items()}


def all_say(shown: Mapping[str, Numbers], expected: Numbers) -> None:
    wrong = {name: each for name, each in shown.items() if each != expected}
    assert not wrong, f"expected {expected}"


@asynccontextmanager
async def gateway_with_control(workdir: Path) -> AsyncIterator[Running]:
    control = '[control]\nsocket = "DIR/control"\n'
    async with running(workdir, CONFIG + control) as gateway:
        yield gateway


class Fio:
    """fio, as it holds its sessions open."""

    def __init__(self, gateway: Running, *options: str) -> None:
        self._at = gateway.directory
        self._options = (
            *("fio", "--output-format=json", "--name=x", "--ioengine=nbd", "--group_reporting"),
            *(f"--uri={gateway.nbd}/x", f"--exec_postrun={HOLDING}", *options),
        )
        self._done: trio.Event = trio.Event()
        self._printed = ""

    async def run(self) -> None:
        done = await trio.run_process(self._options, capture_stdout=True, cwd=self._at)
        self._printed = done.stdout.decode()
        self._done.set()

    async def holds(self, count: int) -> None:
        """Wait until so many jobs have had all their answers."""
        at = self._at / "held"
        while not at.exists() or len(at.read_text()) < count:
            await trio.sleep(0.01)

    async def numbers(self) -> Numbers:
        """Let it leave; give what it has counted."""
        (self._at / "go").touch()
        await self._done.wait()
        (self._at / "go").unlink()
        (self._at / "held").unlink()
        [job] = json.loads(self._printed[self._printed.index("{") :])["jobs"]
        read, write, trim, sync = (job[name] for name in ("read", "write", "trim", "sync"))
        return numbers(
            {
                "READ": read["total_ios"],
                "WRITE": write["total_ios"],
                "TRIM": trim["total_ios"],
                "FLUSH": sync["total_ios"],
            },
            {"READ": read["io_bytes"], "WRITE": write["io_bytes"]},
        )


async def nobody_is_there(gateway: Running) -> None:
    while (await gateway.ask("/api/v1/status")).said["sessions"]:
        await trio.sleep(0.01)


async def test_all_have_fios_numbers(workdir: Path) -> None:
    async with (
        gateway_with_control(workdir) as gateway,
        chromium(workdir) as browser,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(HANG_SECONDS):
            load = ("--rw=randrw", "--bs=4k", "--iodepth=32", "--size=4m", "--fsync=16")
            fio = Fio(gateway, *load, "--numjobs=2", "--offset_increment=8m")
            nursery.start_soon(fio.run)
            await fio.holds(2)
            there = await of_sessions(gateway, 2)
            during = await of_all(gateway)
            first = await fio.numbers()
            assert first[0].keys() == {"READ", "WRITE", "FLUSH"}
            all_say(there, first)
            all_say(during, first)

            trimming = Fio(gateway, "--rw=randtrimwrite", "--bs=16k", "--size=1m")
            nursery.start_soon(trimming.run)
            await trimming.holds(1)
            there = await of_sessions(gateway, 1)
            second = await trimming.numbers()
            assert second[0].keys() == {"TRIM", "WRITE"}
            all_say(there, second)

            await nobody_is_there(gateway)
            both = first[0] + second[0], first[1] + second[1]
            all_say(await of_all(gateway), both)
            page = await browser.page()
            await page.go(f"http://127.0.0.1:{gateway.port}/")
            for command in ("READ", "WRITE"):
                says = f"{both[0][command]:,} {command}s"
                for place in ("#figures", "#rows-exports"):
                    text = f"document.querySelector('{place}').textContent"
                    await page.until(f"{text}.includes('{says}')", f"{place} says {says}")


async def test_all_have_nbdcopys_numbers(workdir: Path) -> None:
    data = workdir / "data"
    data.write_bytes(os.urandom(COPIED))
    copy = ("nbdcopy", f"--request-size={PIECE}")
    count = COPIED // PIECE
    async with gateway_with_control(workdir) as gateway:
        with trio.fail_after(HANG_SECONDS):
            await trio.run_process([*copy, "--connections=4", str(data), f"{gateway.nbd}/x"])
            await nobody_is_there(gateway)
            written = numbers({"WRITE": count}, {"WRITE": COPIED})
            all_say(await of_all(gateway), written)

            back = await trio.lowlevel.open_process(
                [*copy, "--no-extents", f"{gateway.nbd}/x", "-"], stdout=-1
            )
            try:
                assert back.stdout is not None
                received = b""
                while len(received) < COPIED - PIECE:
                    received += await back.stdout.receive_some(COPIED - PIECE - len(received))
                read = numbers({"READ": count}, {"READ": COPIED})
                while (await gateway.ask("/api/v1/status")).said["totals"]["requests"] != {
                    **written[0],
                    **read[0],
                }:
                    await trio.sleep(0.01)  # the last one is about to be asked for
                all_say(await of_sessions(gateway, 1), read)
                all_say(await of_all(gateway), (written[0] + read[0], written[1] + read[1]))
                while rest := await back.stdout.receive_some():
                    received += rest
                assert await back.wait() == 0
            finally:
                back.kill()
                await back.wait()
            assert received == data.read_bytes()
