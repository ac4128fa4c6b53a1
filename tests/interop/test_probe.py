"""nbd-gateway probe: each real server by its name, no false quirk, and still there afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gateway
from gateway.wire.handshake import printable
from tests.interop.probing import MATRIX, probe
from tests.tools.patience import HANG_SECONDS

from .clients import nbdinfo, nbdsh
from .conftest import Image
from .gateways import Gateways
from .processes import Process, listening, run, wait_until
from .servers import Servers, unix_uri
from .versions import nbd_server_has_df, version_of

PROGRAMS = {
    "qemu-raw": "qemu",
    "qemu-qcow2": "qemu",
    "storage-daemon": "qemu",
    "nbdkit": "nbdkit",
    "nbd-server": "nbd-server",
}


def versions_of(program: str) -> str:
    """What it is taken for, by what it does."""
    if program == "qemu":
        return ">=8.2" if version_of("qemu-nbd") >= (8, 2) else ">=7.1,<8.2"
    if program == "nbd-server":
        return ">=3.25" if nbd_server_has_df() else ">=3.15,<3.25"
    return ">=1.12"


def quirks_of(program: str) -> list[str]:
    return ["nbd-server-df"] if program == "nbd-server" and nbd_server_has_df() else []


@pytest.mark.parametrize("kind", PROGRAMS)
def test_real_servers(servers: Servers, image: Image, kind: str) -> None:
    upstream = servers.start(kind, image.path)
    status, found = probe(upstream.uri)
    assert status == 0
    [export] = found["exports"]
    program = export["program"]["name"]
    assert program == PROGRAMS[kind]
    assert export["program"]["versions"] == versions_of(program)
    assert export["quirks"] == quirks_of(program)
    assert export["size"] == image.size
    # It is still there. (nbd-server answers INFO, which nbdinfo asks, with a size of 0: Q-N21.)
    size = nbdinfo(upstream.uri)["exports"][0]["export-size"]
    assert size == (image.size if upstream.info_size else 0)


def test_a_server_for_one_client_survives(servers: Servers, image: Image, workdir: Path) -> None:
    path = workdir / "once"
    process = Process("qemu-nbd", "-f", "raw", "-r", "-k", path, image.path)
    wait_until(lambda: listening(unix_uri(path)), "it listens")
    for _ in range(2):
        status, found = probe(unix_uri(path))
        assert status == 0
        assert found["exports"][0]["program"]["name"] == "qemu"
    assert nbdinfo(unix_uri(path))["exports"][0]["export-size"] == image.size
    process.wait()  # and that client was its one


def test_every_export(servers: Servers, workdir: Path) -> None:
    folder = workdir / "disks"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(bytes(1 << 20))
    upstream = servers.nbdkit("file", f"dir={folder}")
    status, found = probe(upstream.uri, "--list")
    assert status == 0
    assert sorted(export["name"] for export in found["exports"]) == ["a", "b"]


def test_qemu_3_0_is_named_and_the_status_says_that_data_is_at_risk(workdir: Path) -> None:
    path = workdir / "old"
    process = Process(sys.executable, "-m", "gateway.embedded", "legacy:qemu-3.0", "--unix", path)
    wait_until(lambda: listening(unix_uri(path)), "it listens")
    status, found = probe(unix_uri(path))
    assert status == 3
    [export] = found["exports"]
    assert found["program"]["name"] == "qemu"
    assert found["quirks"] == export["quirks"]
    assert export["program"]["versions"] == ">=3.0.0,<3.0.1"
    assert export["quirks"] == ["qemu-multi-conn-bit", "qemu-offset-reads"]
    assert "CAN_MULTI_CONN" in export["flags"]
    assert "CAN_MULTI_CONN" not in export["flags_through"]
    assert "SEND_CACHE" in export["flags_through"]
    assert export["contexts"] == ["base:allocation", "qemu:dirty-bitmap:bitmap0"]
    assert export["notes"][-1].startswith(
        "connections = 4: one connection instead of 4: the server"
    )
    assert "qemu 3.0's CACHE" in export["notes"][-1]
    process.stop()


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_gateway_says_that_it_is_one(
    servers: Servers, via: Gateways, image: Image, kind: str
) -> None:
    status, found = probe(via(servers.start(kind, image.path)))
    assert status == 0
    program = found["program"]
    assert (program["name"], program["versions"]) == ("nbd-gateway", gateway.__version__)
    assert "behind it" in found["exports"][0]["notes"][0]


@pytest.mark.parametrize("name", MATRIX)
def test_no_quirk_is_seen_where_there_is_none(servers: Servers, image: Image, name: str) -> None:
    program, start = MATRIX[name]
    _status, found = probe(start(servers, image.path).uri)
    [export] = found["exports"]
    assert export["quirks"] == quirks_of(program)
    assert found["program"]["name"] == program
    if program == "qemu":  # Debian 12's, or a younger one
        assert found["program"]["versions"].startswith((">=4.2", ">=5.2", ">=7.1", ">=8.2"))


@pytest.mark.parametrize("kind", ["qemu-raw", "nbdkit", "nbd-server", "nbdkit-oldstyle"])
def test_reading_is_done_on_request(servers: Servers, image: Image, kind: str) -> None:
    status, found = probe(servers.start(kind, image.path).uri, "--transmit")
    [export] = found["exports"]
    wrong = export["reading"]["wrong"]
    if kind == "nbd-server" and nbd_server_has_df():  # a READ with DF is refused, by a simple reply
        assert [each.partition(":")[2] for each in wrong] == [" EINVAL"], wrong
    else:
        assert wrong == []
    assert export["reading"]["places"] == 16
    assert status == 3 * export["risks_data"]


def test_reading_finds_an_offset_that_no_flag_shows(workdir: Path) -> None:
    """Holes looked up in the wrong place (Q-S6)."""
    uri = unix_uri(workdir / "offset")
    server = ("legacy:qemu-3.0-offset,size=1M", "--unix", workdir / "offset")
    process = Process(sys.executable, "-m", "gateway.embedded", *server)
    wait_until(lambda: listening(uri), "it listens")
    nbdsh(f"h.connect_uri({uri!r})\nh.pwrite(b'data' * 16384, 0)")
    status, found = probe(uri, "--transmit")
    assert status == 3
    assert "with DF than without" in found["exports"][0]["reading"]["wrong"][0]
    process.stop()


def test_what_its_owner_should_know_is_said(servers: Servers, image: Image) -> None:
    status, found = probe(servers.start("qemu-raw", image.path).uri)
    assert status == 0
    assert "up to a multiple of 512" in found["exports"][0]["notes"][0]
    status, found = probe(servers.start("nbdkit-oldstyle", image.path).uri)
    assert "was opened" in found["exports"][0]["notes"][0]


def test_whether_several_connections_would_be_used(servers: Servers, image: Image) -> None:
    """nbdkit's file plugin has no cache of its own; its multi-conn filter says otherwise on request."""
    for filters, used in (
        ((), True),
        (("--filter=multi-conn", "multi-conn-mode=disable"), False),
        (("--filter=multi-conn", "multi-conn-mode=disable", "-r"), True),
    ):
        _, found = probe(servers.nbdkit("file", str(image.path), *filters).uri)
        note = found["exports"][0]["notes"][-1]
        assert note.startswith("connections = 4: ")
        assert ("4 for each client" in note, "does not offer" in note) == (used, not used)


def test_a_server_that_demands_tls(servers: Servers, workdir: Path) -> None:
    (workdir / "keys.psk").write_text("alice:00112233\n")
    upstream = servers.nbdkit("memory", "1M", "--tls=require", f"--tls-psk={workdir}/keys.psk")
    status, found = probe(upstream.uri)
    assert (status, found["tls_required"], found["exports"]) == (0, True, [])


def test_over_tls(servers: Servers, workdir: Path) -> None:
    run(sys.executable, "-m", "gateway", "pki", "init", workdir / "pki")
    secure = ("--tls=require", f"--tls-certificates={workdir / 'pki'}", "--tls-verify-peer")
    uri = servers.nbdkit(*secure, "memory", "8M").uri
    how = f"tls-certificates={workdir / 'pki'}&tls-hostname=localhost"
    status, found = probe(f"nbds+unix:///?socket={uri.partition('socket=')[2]}&{how}", "--transmit")
    assert (status, found["program"]["name"]) == (0, "nbdkit")
    assert found["exports"][0]["reading"] == {"places": 16, "wrong": []}


def test_what_is_no_server(workdir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "probe", unix_uri(workdir / "nobody")],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "unreachable" in done.stderr
    assert "Traceback" not in done.stderr


def test_failing_in_json(workdir: Path) -> None:
    status, found = probe(unix_uri(workdir / "nobody"))
    assert status == 1
    assert "unreachable" in found["error"]


def test_names_do_not_command_the_terminal() -> None:
    """A server's text is shown without what a terminal would obey."""
    assert printable("a\x1b[2Jb\n") == r"a\x1b[2Jb\n"
