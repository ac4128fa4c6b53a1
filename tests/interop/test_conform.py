"""nbd-gateway conform: the real servers, what they keep and what they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools.patience import HANG_SECONDS

from .processes import Process, listening, wait_until
from .processes import run as make_certificates
from .servers import Servers, Upstream, unix_uri
from .versions import nbd_server_has_df

SIZE = 200 << 20
"""Room for a WRITE_ZEROES of 128 MiB."""


def run(uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "conform", uri, *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def conform(uri: str) -> tuple[int, dict[str, Any]]:
    done = run(uri, "--destroy", "--json")
    return done.returncode, json.loads(done.stdout)


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {promise["name"]: promise["verdict"] for promise in found["promises"]}


def names(found: dict[str, Any], verdict: str) -> set[str]:
    return {name for name, said in verdicts(found).items() if said == verdict}


@pytest.fixture
def scratch(workdir: Path) -> Path:
    path = workdir / "scratch"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def embedded(workdir: Path, target: str) -> str:
    path = workdir / "embedded"
    process = Process(sys.executable, "-m", "gateway.embedded", target, "--unix", path)
    process.ready_when(lambda: listening(unix_uri(path)), "it listens")
    return unix_uri(path)


@pytest.mark.parametrize("kind", ["qemu-raw", "qemu-qcow2", "storage-daemon", "nbdkit"])
def test_servers_that_keep_all(servers: Servers, scratch: Path, kind: str) -> None:
    status, found = conform(servers.start(kind, scratch).uri)
    assert names(found, "fail") == set()
    assert (status, found["kept"]) == (0, True)
    assert {"read-back", "df-agrees", "write-zeroes-long", "status-data"} <= names(found, "pass")


@pytest.mark.parametrize("options", [(), ("--no-sr",)])
def test_nbdkit_in_memory(servers: Servers, options: tuple[str, ...]) -> None:
    status, found = conform(servers.nbdkit(*options, "memory", str(SIZE)).uri)
    assert (status, names(found, "fail")) == (0, set())
    assert {"multi-conn-stale", "cache", "write-zeroes-long"} <= names(found, "pass")
    assert ("df-agrees" in names(found, "not offered")) == bool(options)


def test_block_sizes_are_minded(servers: Servers) -> None:
    """A server that refuses what is not aligned, or too long."""
    upstream = servers.nbdkit(
        *("--filter=blocksize-policy", "memory", str(SIZE), "blocksize-error-policy=error"),
        *("blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=2M"),
    )
    status, found = conform(upstream.uri)
    assert (status, names(found, "fail")) == (0, set())
    assert "write-too-long" in names(found, "pass")


ABOUT_DF = ("df-agrees", "df-one-chunk", "read-past-end", "unknown-flag")
"""What nbd-server breaks since 3.25, with structured replies: it refuses DF, and READs, by simple ones."""


def test_nbd_server_does_not_zero_128_mib(servers: Servers, scratch: Path) -> None:
    """Q-N1."""
    upstream: Upstream = servers.start("nbd-server", scratch)
    status, found = conform(upstream.uri)
    broken = {"write-zeroes-long", *(ABOUT_DF if nbd_server_has_df() else ())}
    assert (status, names(found, "fail")) == (3, broken)
    [finding] = [p for p in found["promises"] if p["name"] == "write-zeroes-long"]
    assert f"{64 << 20} bytes in" in finding["expected"]
    assert finding["section"] == "Request types: WRITE_ZEROES"
    # And a read-only export of the same file is left alone.
    status, found = conform(upstream.named("archive"))
    assert names(found, "fail") == broken - {"write-zeroes-long", "df-one-chunk"}  # which writes
    assert status == 3 * bool(names(found, "fail"))
    assert "write-zeroes-long" in names(found, "not offered")


def test_what_oldstyle_nbdkit_promises_and_refuses(servers: Servers) -> None:
    status, found = conform(servers.nbdkit("-o", "memory", str(SIZE)).uri)
    assert status == 3
    assert {"flush", "fua-write", "trim-range"} <= names(found, "fail")
    assert {"read-back", "read-past-end", "unknown-command"} <= names(found, "pass")


def test_qemu_for_one_client(workdir: Path, scratch: Path) -> None:
    path = workdir / "once"
    process = Process("qemu-nbd", "-f", "raw", "-k", path, scratch)
    wait_until(lambda: listening(unix_uri(path)), "it listens")
    status, found = conform(unix_uri(path))
    assert (status, names(found, "fail")) == (0, set())
    assert "read-back" in names(found, "pass")
    process.wait()


def test_qemu_read_only(servers: Servers, scratch: Path) -> None:
    scratch.write_bytes(b"\xff" * (4 << 20))
    upstream = servers.qemu_nbd("-f", "raw", "-r", scratch)
    status, found = conform(upstream.uri)
    assert (status, names(found, "fail")) == (0, set())
    assert {"df-agrees", "status-zero", "read-past-end"} <= names(found, "pass")
    assert "read-back" in names(found, "not offered")
    assert scratch.read_bytes() == b"\xff" * (4 << 20)


def test_qemu_3_0_at_worst(workdir: Path) -> None:
    uri = embedded(workdir, f"legacy:qemu-3.0-incoherent,size={SIZE}")
    status, found = conform(uri)
    assert status == 3
    assert names(found, "fail") == {
        "cache",
        "multi-conn-stale",
        "multi-conn-others",
        "multi-conn-fua",
    }


@pytest.mark.parametrize(
    "name", ["qemu-3.0-incoherent", "qemu-3.0-offset", "qemu-2.5", "nbd-server-3.24"]
)
def test_through_the_gateway_every_promise_is_kept(workdir: Path, name: str) -> None:
    """What the same servers break when they are asked directly: here, and in tests/inspect/test_conform.py."""
    uri = unix_uri(workdir / "gateway")
    command = (sys.executable, "-m", "gateway", "serve", f"legacy:{name},size={SIZE}")
    gateway = Process(*command, "--listen", uri)
    gateway.ready_when(lambda: listening(uri), "it listens")
    status, found = conform(uri)
    assert (status, names(found, "fail")) == (0, set())
    assert {"write-zeroes-long", "trim-range", "read-back"} <= names(found, "pass")
    gateway.stop()


def test_the_table(workdir: Path) -> None:
    uri = embedded(workdir, f"memory:{SIZE}")
    done = run(uri, "--destroy")
    assert done.returncode == 0
    assert "33 pass, 0 fail, 0 not offered" in done.stdout


def test_it_asks_before_it_overwrites(workdir: Path) -> None:
    done = run(unix_uri(workdir / "nobody"))
    assert done.returncode == 2
    assert "will be overwritten; say --destroy" in done.stderr


def test_what_is_no_server(workdir: Path) -> None:
    status, found = conform(unix_uri(workdir / "nobody"))
    assert status == 1
    assert "unreachable" in found["error"]


def test_a_server_that_demands_tls(servers: Servers, workdir: Path) -> None:
    (workdir / "keys.psk").write_text("alice:00112233\n")
    upstream = servers.nbdkit("memory", "1M", "--tls=require", f"--tls-psk={workdir}/keys.psk")
    status, found = conform(upstream.uri)
    assert status == 1
    assert "TLS" in found["error"]


def test_nbdkit_over_tls_loses_its_way_behind_a_refused_write(
    servers: Servers, workdir: Path
) -> None:
    """Q-K10: up to 1.33 it reads the data of such a WRITE past TLS."""
    make_certificates(sys.executable, "-m", "gateway", "pki", "init", workdir / "pki")
    pki = f"tls-certificates={workdir / 'pki'}"
    secure = ("--tls=require", f"--tls-certificates={workdir / 'pki'}", "--tls-verify-peer")
    uri = servers.nbdkit(*secure, "memory", "200M").uri
    path = uri.partition("socket=")[2]
    status, found = conform(f"nbds+unix:///?socket={path}&{pki}&tls-hostname=localhost")
    assert (status, names(found, "fail")) == (3, {"write-past-end", "unknown-flag-write"})
