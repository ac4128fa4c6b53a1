"""What clients of one shared connection cost each other, by hand: python -m tests.bench.neighbours

Eight clients of `qemu-nbd -e 1`, through a gateway with `connections = "shared"`, read 4 KiB at a time: alone,
beside one that asks for 2,000 MiB and never reads, beside one that is stopped, and beside one that keeps
128 READs of 1 MiB under way. What is compared alternates in one run; medians of the ratios of pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.client import Session
from tests.bench.processes import Child, free_port, resident_mib, run_tool
from tests.bench.rows import MIB

CLIENTS = 8
DISK_BYTES = 256 * MIB
_SETTLE_SECONDS = 0.5


def _read(uri: str, clients: int, seconds: float) -> float:
    """Thousands of READs a second, of all clients together."""
    printed = run_tool(
        [
            *("fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--rw=randread", "--bs=4k"),
            *(f"--iodepth={4 if clients > 1 else 1}", f"--numjobs={clients}", "--group_reporting"),
            *("--size=32m", "--offset_increment=32m" if clients > 1 else "--offset=0"),
            *("--time_based", f"--runtime={round(seconds * 1000)}ms", "--output-format=json"),
        ],
        seconds + 30,
    )
    (job,) = json.loads(printed[printed.index("{") :])["jobs"]
    assert not job["error"]
    return float(job["read"]["iops"]) / 1e3


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process: what tells on a machine that is busy with other things."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _nobody(_port: int) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _never_reads(port: int) -> Iterator[None]:
    session = Session(port)
    session.ask_reads(2000, MIB, DISK_BYTES)
    time.sleep(_SETTLE_SECONDS)
    yield
    session.close()


_PUMP = (
    "import sys; from tests.bench.client import Session; "
    "Session(int(sys.argv[1]), structured=True).pump({}, {}, {}, 600)"
)


@contextlib.contextmanager
def _other(port: int, block_bytes: int, depth: int, *, stop: bool) -> Iterator[None]:
    program = _PUMP.format(block_bytes, depth, DISK_BYTES)
    client = subprocess.Popen([sys.executable, "-c", program, str(port)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(2 * _SETTLE_SECONDS)
        if stop:
            os.kill(client.pid, signal.SIGSTOP)
        time.sleep(_SETTLE_SECONDS)
        assert client.poll() is None
        yield
    finally:
        client.kill()
        client.wait()


NEIGHBOURS: dict[str, Callable[[int], contextlib.AbstractContextManager[None]]] = {
    "nobody": _nobody,
    "one that never reads": _never_reads,
    "one that is stopped": lambda port: _other(port, 64 * 1024, 16, stop=True),
    "one with 128 x 1 MiB": lambda port: _other(port, MIB, 128, stop=False),
}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--server", choices=("qemu-nbd", "nbdkit"), default="qemu-nbd")
    parser.add_argument("--clients", type=int, nargs="*", default=[CLIENTS, 1])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbd-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        disk = folder / "disk"
        block = os.urandom(MIB)
        with disk.open("wb") as file:
            for _ in range(DISK_BYTES // MIB):
                file.write(block)
        port, listen = free_port(), free_port()
        if options.server == "qemu-nbd":
            command = ["qemu-nbd", "-t", "-e", "1", "-f", "raw", "-b", "127.0.0.1"]
            command += ["-p", str(port), str(disk)]
        else:
            command = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", str(disk)]
        # Not by connecting, which would be the server's one connection: it is listening soon enough.
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.kill)
        config = folder / "g.toml"
        config.write_text(
            f'listen = [ {{ uri = "nbd://127.0.0.1:{listen}" }} ]\n'
            f'upstream.main = {{ uri = "nbd://127.0.0.1:{port}", connections = "shared" }}\n'
        )
        script = str(Path(sys.executable).with_name("nbd-gateway"))
        gateway = Child(
            "gateway", [script, "serve", "--config", str(config)], listen, folder / "log"
        )
        stack.callback(gateway.stop)
        uri = f"nbd://127.0.0.1:{listen}"
        for clients in options.clients:
            print(f"{clients} clients, depth {4 if clients > 1 else 1}: 4k READs, k/s")
            for who in NEIGHBOURS:
                pairs = []
                cost: tuple[list[float], list[float]] = ([], [])
                for turn in range(options.rounds):
                    # Which of the two is first alternates as well: a busy moment hits both alike.
                    pair = [0.0, 0.0]
                    for beside in (turn % 2, 1 - turn % 2):
                        with (NEIGHBOURS[who] if beside else _nobody)(listen):
                            before = _cpu_seconds(gateway.pid)
                            pair[beside] = _read(uri, clients, options.seconds)
                            used = _cpu_seconds(gateway.pid) - before
                            cost[beside].append(used * 1e3 / pair[beside] / options.seconds)
                            if beside:
                                resident = resident_mib(gateway.pid)
                    pairs.append((pair[0], pair[1], pair[1] / pair[0]))
                alone, beside_it, ratio = map(statistics.median, zip(*pairs, strict=True))
                print(
                    f"  beside {who:22} {beside_it:7.3f}, alone {alone:7.3f}: {ratio:5.3f}"
                    f"   ({min(p[2] for p in pairs):.2f} to {max(p[2] for p in pairs):.2f};"
                    f" {statistics.median(cost[1]):.1f} us of processor each,"
                    f" alone {statistics.median(cost[0]):.1f};"
                    f" gateway {resident:.0f} MiB)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
