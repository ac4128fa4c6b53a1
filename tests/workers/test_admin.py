"""HTTP with several workers: one page, one scrape and one log for all."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.admin.asking import ask
from gateway.web.verbs import DOES
from gateway.wire.constants import Cmd
from tests.embedded.peers import Client
from tests.tools.patience import HANG_SECONDS
from tests.web.pages import LOOK, Running, running
from tests.web.senseless import NO_SENSE, NOT_SO_NOW, out_of_their_ranges_are_400
from tests.workers.running import disks, names_by_turns, server_at, until

pytestmark = pytest.mark.real

CONFIG = """
workers = 2
listen = [ { uri = "nbd://127.0.0.1:0" } ]
[control]
socket = "DIR/control"
[upstream.main]
uri = "nbd+unix:///?socket=DIR/u.sock"
canonical-names = true
"""
ADMIN = """
[admin]
uri = ["http://127.0.0.1:0", "http+unix://DIR/admin"]
tokens = "DIR/tokens"
"""


REFUSED_AS_A_WHOLE = {
    *("switch", "upgrade"),
    *(each.verb for each in DOES if each.verb.startswith("export-")),
}
"""Whatever is said with them, several workers refuse them."""


async def number_of(one: Running, name: str, **labels: str) -> float:
    """Give the sum of what a scrape says by a name, and with these labels."""
    text = (await one.ask("/metrics", token=LOOK)).body.decode()
    lines = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for said, value in lines if all(each in said for each in wanted))


async def opened(one: Running, name: str) -> Client:
    port = int(one.nbd.rpartition(":")[2])
    client = Client(await trio.open_tcp_stream("127.0.0.1", port))
    await client.go(name)
    return client


async def written(one: Running, name: str) -> None:
    """Have a client come, write, and leave."""
    client = await opened(one, name)
    async with client.stream:
        assert await client.error(Cmd.WRITE, 0, data=b"x" * 512) == 0
        await client.send(Cmd.DISC)
        assert await client.rest() == b""


async def test_what_makes_no_sense_to_a_worker_is_400_for_the_whole(workdir: Path) -> None:
    async with server_at(workdir / "u.sock", disks()), running(workdir, CONFIG, ADMIN) as one:
        with trio.fail_after(HANG_SECONDS):
            while (await one.ask("/readyz")).status != 200:
                await trio.sleep(0.01)
        await out_of_their_ranges_are_400(one, REFUSED_AS_A_WHOLE)
        for status, verb, said in (*NO_SENSE, *NOT_SO_NOW):
            answer = await one.do(verb, **said)
            assert answer.status == status, (verb, said, answer.body)


async def test_one_scrape_has_the_counts_of_all_and_of_those_that_have_died(workdir: Path) -> None:
    async with server_at(workdir / "u.sock", disks()), running(workdir, CONFIG, ADMIN) as one:
        with trio.fail_after(HANG_SECONDS):

            async def is_ready() -> bool:
                return (await one.ask("/readyz")).status == 200

            async def workers() -> list[Mapping[str, Any]]:
                answer = await ask(workdir / "control", "status")
                return [] if answer.data is None else list(answer.data["workers"])

            async def all_have_left() -> bool:
                return await number_of(one, "nbd_gateway_sessions") == 0

            names = names_by_turns(workdir / "gateway.toml")
            await until(is_ready)
            for name in names:
                await written(one, name)
            await until(all_have_left)
            writes = "nbd_gateway_requests_total"
            assert await number_of(one, writes, command="WRITE") == len(names)
            begun = await number_of(one, "nbd_gateway_sessions_begun_total")
            assert begun == len(names)
            pid = (await workers())[0]["pid"]
            os.kill(pid, signal.SIGKILL)

            async def is_replaced() -> bool:
                assert await number_of(one, writes, command="WRITE") == len(names)
                return any(each["restarts"] and each["serves"] for each in await workers())

            await until(is_replaced)
            assert await number_of(one, writes, command="WRITE") == len(names)
            assert await number_of(one, "nbd_gateway_sessions_begun_total") == len(names)
            for name in names:
                await written(one, name)
            await until(all_have_left)
            assert await number_of(one, writes, command="WRITE") == 2 * len(names)
            lines = (await one.ask("/api/v1/log", token=LOOK)).said["lines"]
            assert {each["fields"].get("worker") for each in lines} >= {0, 1}
            assert "worker has died" in {each["event"] for each in lines}
            assert [each["number"] for each in lines] == sorted(each["number"] for each in lines)
            assert (await one.ask("/livez")).status == 200


async def test_what_is_not_done_has_who_asked_for_it_in_the_log(workdir: Path) -> None:
    """Behind HTTP one process asks for everybody: the token's name tells who it was."""
    async with server_at(workdir / "u.sock", disks()), running(workdir, CONFIG, ADMIN) as one:
        refused = await one.do("drain", listener="nbd://192.0.2.1")
        assert refused.status == 409

        def of_supervisor() -> list[str]:
            said = [line for line in one.said if "command not done" in line]
            return [line for line in said if "worker=" not in line]

        async def is_said() -> bool:
            return bool(of_supervisor())

        await until(is_said)
        assert all("asked_by='ops at 127.0.0.1" in line for line in of_supervisor())
