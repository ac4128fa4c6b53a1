"""Measures etcd on this machine: python -m tests.sim.measure [--write]

Three members on loopback, in the way that a gateway of ours speaks with them: their JSON gateway. Their disks,
processors and network are this machine's, which they share with whoever asks. So a real cluster is rather
faster where much is asked at once, and slower where one question is alone, for its members are further apart.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import selectors
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import trio

from tests.bench import machine
from tests.fleet.etcds import running
from tests.sim.found import COSTS
from tests.tools.patience import HANG_SECONDS

MEMBERS = 3
ALONE = 200
"""So many questions, one after the other, say what one takes alone."""
AT_ONCE = 32
"""So many are asked at once to find how many are answered in a second."""
SECONDS = 5.0
KEYS = (100, 2_000)
"""A lease with so many keys is removed: the difference is what the keys take."""
LEASES = 5
"""How many leases end by themselves, to see how late that is found."""
TTL_SECONDS = 2


Question = tuple[str, dict[str, object]]
"""A path, and what is said."""


def _b(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class _Asker:
    """Asks one member."""

    def __init__(self, client: httpx.AsyncClient, uri: str) -> None:
        self._client = client
        self._uri = uri

    async def ask(self, path: str, **said: object) -> dict[str, object]:
        answer = await self._client.post(f"{self._uri}/v3/{path}", json=said)
        answer.raise_for_status()
        found: dict[str, object] = answer.json()
        return found

    async def leader(self) -> None:
        """Wait until there is one."""
        with trio.fail_after(HANG_SECONDS):
            while True:
                with suppress(httpx.HTTPError):
                    await self.ask("kv/range", key=_b("none"))
                    return
                await trio.sleep(0.05)

    async def lease(self, seconds: int) -> str:
        return str((await self.ask("lease/grant", TTL=seconds))["ID"])

    async def take(self, key: str, lease: str) -> None:
        path, said = _take(key, lease)
        answer = await self.ask(path, **said)
        assert answer.get("succeeded"), answer

    async def is_there(self, key: str) -> bool:
        path, said = _read(key)
        return "kvs" in await self.ask(path, **said)


def _take(key: str, lease: str) -> Question:
    """Give what takes a disk, in one transaction."""
    there = {"key": _b(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
    home = {"request_put": {"key": _b(key), "value": _b("a" * 60), "lease": lease}}
    record = {"request_put": {"key": _b(f"{key}/record"), "value": _b("a" * 100)}}
    return "kv/txn", {"compare": [there], "success": [home, record]}


def _read(key: str) -> Question:
    return "kv/range", {"key": _b(key)}


async def _alone(asker: _Asker, question: Callable[[int], Question]) -> float:
    took = []
    for number in range(ALONE):
        path, said = question(number)
        began = time.perf_counter()
        await asker.ask(path, **said)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _at_once(uri: str, question: Callable[[int], Question]) -> float:
    """Give for how long one keeps etcd busy, where so many are asked at once. A client that is made for people
    would keep this machine busier than etcd does.
    """
    host, _, port = uri.removeprefix("http://").partition(":")
    number = count = 0
    with selectors.DefaultSelector() as selector, ExitStack() as stack:

        def ask(sock: socket.socket) -> None:
            nonlocal number
            number += 1
            path, said = question(ALONE + number)
            body = json.dumps(said).encode()
            head = (
                f"POST /v3/{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            sock.sendall(head.encode() + body)

        unfinished: dict[socket.socket, bytes] = {}
        for _ in range(AT_ONCE):
            connected = stack.enter_context(socket.create_connection((host, int(port))))
            selector.register(connected, selectors.EVENT_READ, connected)
            unfinished[connected] = b""
            ask(connected)
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            for key, _events in selector.select(1):
                sock: socket.socket = key.data
                unfinished[sock] += sock.recv(65536)
                if _is_whole(unfinished[sock]):
                    unfinished[sock] = b""
                    count += 1
                    ask(sock)
        return (time.perf_counter() - began) / count


def _is_whole(answer: bytes) -> bool:
    head, ended, body = answer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if not ended or length is None:  # in chunks, of which the last is empty
        return body.endswith(b"0\r\n\r\n")
    return len(body) == int(length[1])


async def _removed(asker: _Asker, keys: int) -> float:
    lease = await asker.lease(600)
    for number in range(keys):
        await asker.take(f"removed/{keys}/{number}", lease)
    began = time.perf_counter()
    await asker.ask("lease/revoke", ID=lease)
    return time.perf_counter() - began


async def _noticed(asker: _Asker, number: int) -> float:
    """Give how long after its end a lease's key is gone."""
    lease = await asker.lease(TTL_SECONDS)
    began = time.perf_counter()
    await asker.take(f"noticed/{number}", lease)
    while await asker.is_there(f"noticed/{number}"):
        await trio.sleep(0.01)
    return time.perf_counter() - began - TTL_SECONDS


async def measured(uri: str) -> dict[str, object]:
    """Measure the members, one of which is at this URI."""
    limits = httpx.Limits(max_connections=2 * AT_ONCE)
    async with httpx.AsyncClient(timeout=HANG_SECONDS, limits=limits) as client:
        asker = _Asker(client, uri)
        await asker.leader()
        lease = await asker.lease(600)
        questions: dict[str, Callable[[int], Question]] = {
            "renewal": lambda _number: ("lease/keepalive", {"ID": lease}),
            "read": lambda number: _read(f"read/{number}"),
            "write": lambda number: _take(f"write/{number}", lease),
        }
        found: dict[str, object] = {}
        for name, question in questions.items():
            alone = await _alone(asker, question)
            busy = _at_once(uri, question)
            found[name] = {"alone": round(alone, 5), "busy": round(busy, 6)}
        few, many = [await _removed(asker, keys) for keys in KEYS]
        found["key_removed"] = round(max(0.0, many - few) / (KEYS[1] - KEYS[0]), 7)
        noticed = [await _noticed(asker, number) for number in range(LEASES)]
        found["notice"] = round(max(noticed), 2)
        return found


def main() -> None:
    """Print what was measured; with --write it is what simulations go by."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.measure")
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    with (
        tempfile.TemporaryDirectory() as at,
        running(Path(at) / "etcd", MEMBERS, hurried=False) as members,
    ):
        found = trio.run(measured, members.uris[0])
    text = json.dumps({"on": machine.facts()["processors"], **found}, indent=2) + "\n"
    print(text, end="")
    if write:
        COSTS.write_text(text)


if __name__ == "__main__":
    main()
