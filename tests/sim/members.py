"""Three members of etcd on loopback, each with a folder of its own."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bench.processes import free_port
from tests.tools.patience import HANG_SECONDS

MEMBERS = 3


@contextmanager
def three_members(at: Path) -> Iterator[list[str]]:
    """Have them in this block; give the URIs that clients ask."""
    clients = [f"http://127.0.0.1:{free_port()}" for _ in range(MEMBERS)]
    peers = [f"http://127.0.0.1:{free_port()}" for _ in range(MEMBERS)]
    cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
    processes = []
    try:
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            command = ["etcd", "--name", f"m{number}", "--data-dir", str(at / f"m{number}")]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", cluster, "--initial-cluster-token", str(at)]
            with (at / f"log{number}").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        for client in clients:
            _wait_until_healthy(client)
        yield clients
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _wait_until_healthy(client: str) -> None:
    until = time.monotonic() + HANG_SECONDS
    while True:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"{client}/health", timeout=HANG_SECONDS) as answer,
        ):
            if b'"true"' in answer.read():
                return
        if time.monotonic() > until:
            raise TimeoutError(f"etcd at {client} is not healthy after {HANG_SECONDS} s")
        time.sleep(0.05)
