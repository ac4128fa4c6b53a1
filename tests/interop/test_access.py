"""One disk, one gateway, four clients: each is told apart by another proof, and sees another disk.

The clients are libnbd and qemu; what each sees is held against the image itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trustme

from gateway.wire.constants import Opt, Rep
from gateway.wire.handshake import encode_info_request, encode_meta_query, encode_option
from tests.tls.handshakes import directory, needs_psk

from .clients import nbdcopy, nbdinfo, nbdsh
from .gateways import MODE
from .processes import Process, attempt, listening, run
from .servers import Servers, free_port, unix_uri

pytestmark = [
    pytest.mark.skipif(MODE != "gateway", reason="a blind relay knows nobody"),
    needs_psk,
]

MIB = 1 << 20
SIZE = 16 * MIB
WINDOW = range(5 * MIB + 512, 9 * MIB + 512)
DIRTY = range(6 * MIB, 6 * MIB + 128 * 1024)
BITMAP = "qemu:dirty-bitmap:today"
EPERM = "EPERM"

CONFIG = """
[[listen]]
uri = "nbds://127.0.0.1:{tls}"
certificates = "{pki}"
psk = "{pki}/keys.psk"
[[listen]]
uri = "nbd://127.0.0.1:{plain}"
[[listen]]
uri = "{unix}"

[upstream.qemu]
uri = "{upstream}"

[[export]]
name = "vm"
upstream = "qemu"
upstream-name = ""
[[export]]
name = "spare"
upstream = "qemu"
upstream-name = ""

[[rule]]
name = "backup"
who = {{ certificate = {{ cn = "backup-*" }} }}
exports = "vm"
policies = [
  {{ use = "readonly" }},
  {{ use = "contexts", allow = ["base:allocation", "qemu:dirty-bitmap:*"] }},
]
[[rule]]
name = "writer"
who = {{ psk-user = "writer" }}
exports = "vm"
[[rule]]
name = "reader"
who = {{ network = "127.0.0.2/32" }}
exports = "vm"
policies = [
  {{ use = "readonly" }},
  {{ use = "window", offset = {offset}, size = {size} }},
  {{ use = "contexts", allow = [], denied = "omit" }},
]
[[rule]]
name = "nobody, and it is told"
who = {{ unix-user = {user} }}
exports = "vm"
deny = true
[[rule]]
name = "nobody"
who = {{ unix-user = {user} }}
deny = true
hide = true
"""


@dataclass
class Scene:
    """Everything that runs, and how each client says who it is."""

    gateway: Process
    upstream: str
    content: bytes
    workdir: Path
    pki: Path
    tls: int
    plain: int
    unix: Path
    relay: Path

    # As libnbd has it.

    @property
    def backup(self) -> str:
        return f"nbds://127.0.0.1:{self.tls}/vm?tls-certificates={self.pki}"

    @property
    def writer(self) -> str:
        return f"nbds://writer@127.0.0.1:{self.tls}/vm?tls-psk-file={self.pki}/keys.psk"

    @property
    def reader(self) -> str:
        """By way of 127.0.0.2, which no client can be told to come from."""
        return unix_uri(self.relay, "vm")

    @property
    def nobody(self) -> str:
        return unix_uri(self.unix, "vm")

    # As qemu has it.

    def as_backup(self, more: str = "") -> list[str]:
        return [
            *("--object", f"tls-creds-x509,id=t,dir={self.pki},endpoint=client"),
            *("--image-opts", self._over_tls(more)),
        ]

    def as_writer(self, more: str = "") -> list[str]:
        credentials = f"tls-creds-psk,id=t,dir={self.pki},endpoint=client,username=writer"
        return ["--object", credentials, "--image-opts", self._over_tls(more)]

    def _over_tls(self, more: str) -> str:
        return f"driver=nbd,host=127.0.0.1,port={self.tls},export=vm,tls-creds=t{more}"

    def as_reader(self, more: str = "") -> list[str]:
        opts = f"driver=nbd,server.type=unix,server.path={self.relay},export=vm{more}"
        return ["--image-opts", opts]

    def as_nobody(self) -> list[str]:
        return ["--image-opts", f"driver=nbd,server.type=unix,server.path={self.unix},export=vm"]


@pytest.fixture
def scene(servers: Servers, workdir: Path) -> Scene:
    ca = trustme.CA()
    pki = directory(
        workdir / "pki",
        ca,
        server=ca.issue_cert("localhost", "127.0.0.1"),
        client=ca.issue_cert("backup@example.org", common_name="backup-7"),
    )
    keys = pki / "keys.psk"
    keys.write_text("writer:" + "0123456789abcdef" * 4 + "\n")
    keys.chmod(0o600)
    raw, disk = workdir / "raw", workdir / "disk.qcow2"
    content = bytearray(SIZE)
    content[4 * MIB : 10 * MIB] = Random(1).randbytes(6 * MIB)
    raw.write_bytes(content)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk)
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", disk, "today")
    dirty = f"write -P 7 {DIRTY.start} {len(DIRTY)}"
    run("qemu-io", "-f", "qcow2", "-c", dirty, disk)
    content[DIRTY.start : DIRTY.stop] = b"\7" * len(DIRTY)
    upstream = servers.qemu_nbd("-f", "qcow2", "-B", "today", disk)

    tls, plain = free_port(), free_port()
    unix, relay = workdir / "unix", workdir / "relay"
    config = workdir / "gateway.toml"
    config.write_text(
        CONFIG.format(
            tls=tls,
            plain=plain,
            unix=unix_uri(unix),
            pki=pki,
            upstream=upstream.named(""),
            offset=WINDOW.start,
            size=len(WINDOW),
            user=os.getuid(),
        )
    )
    gateway = Process(sys.executable, "-m", "gateway", "serve", "--config", config)
    gateway.ready_when(lambda: listening(unix_uri(unix)), "the gateway listens")
    other_address = Process(
        *("socat", f"UNIX-LISTEN:{relay},fork", f"TCP:127.0.0.1:{plain},bind=127.0.0.2")
    )
    other_address.ready_when(lambda: listening(unix_uri(relay)), "the relay listens")
    return Scene(gateway, upstream.named(""), bytes(content), workdir, pki, tls, plain, unix, relay)


def flags(uri: str) -> tuple[int, bool, list[str]]:
    """The size, whether it is read-only, and the contexts that can be had."""
    [export] = nbdinfo(uri)["exports"]
    return export["export-size"], export["is_read_only"], export["contexts"]


def script(program: str) -> str:
    """Run lines in libnbd's shell, where URIs may name files of keys and certificates."""
    return nbdsh(f"h.set_uri_allow_local_file(True)\n{program}")


def names(uri: str) -> list[str]:
    """What LIST tells."""
    program = (
        "h.set_opt_mode(True)\nh.connect_uri(%r)\nnames = []\n"
        "h.opt_list(lambda name, text: names.append(name))\nh.opt_abort()\n"
        "import json; print(json.dumps(names))"
    )
    told: list[str] = json.loads(script(program % uri))
    return told


def error_of_a_write(uri: str, offset: int) -> str:
    """The error that the server gives, or "0": libnbd's own check is switched off."""
    said = script(
        f"h.connect_uri({uri!r})\nh.set_strict_mode(0)\n"
        f"try:\n    h.pwrite(b'x' * 512, {offset})\n    print(0)\n"
        "except nbd.Error as error:\n    print(error.errno)"
    )
    return said.strip()


def dirty_by_qemu(*who: str) -> list[tuple[int, int]]:
    """Where qemu-img finds the bitmap dirty: x-dirty-bitmap shows that as what has no data."""
    rows = json.loads(run("qemu-img", "map", "--output=json", *who))
    return [(row["start"], row["length"]) for row in rows if not row["data"]]


def test_four_clients_see_four_disks(scene: Scene) -> None:
    assert flags(scene.writer) == (SIZE, False, ["base:allocation", BITMAP])
    assert flags(scene.backup) == (SIZE, True, ["base:allocation", BITMAP])
    assert flags(scene.reader) == (len(WINDOW), True, [])
    assert attempt("nbdinfo", scene.nobody).status
    for client in (scene.writer, scene.backup, scene.reader):
        assert names(client) == ["vm"]
    assert names(scene.nobody) == []
    # Who proves nothing at all is nobody either.
    stranger = f"nbd://127.0.0.1:{scene.plain}/vm"
    assert attempt("nbdinfo", stranger).status
    assert names(stranger) == []

    for who in (scene.as_writer(), scene.as_backup()):
        assert f"({SIZE} bytes)" in run("qemu-img", "info", *who)
    assert f"({len(WINDOW)} bytes)" in run("qemu-img", "info", *scene.as_reader())
    denied = attempt("qemu-img", "info", *scene.as_nobody())
    assert denied.status
    assert "denied" in denied.err
    assert scene.gateway.stop() == 0
    assert "Traceback" not in scene.gateway.output


def test_each_reads_what_is_there(scene: Scene) -> None:
    """And what the writer writes is seen by all, each at its own offset."""
    expected = bytearray(scene.content)
    for mark in (None, WINDOW.start, WINDOW.stop - 4096, 0):
        if mark is not None:
            script(f"h.connect_uri({scene.writer!r})\nh.pwrite(b'w' * 4096, {mark})\nh.flush()")
            expected[mark : mark + 4096] = b"w" * 4096
        image = scene.workdir / "expected"
        image.write_bytes(expected)
        for who in (scene.as_backup(), scene.as_writer()):
            file = f"driver=raw,file.driver=file,file.filename={image}"
            assert "identical" in run("qemu-img", "compare", *who, file)
        copy = scene.workdir / "copy"
        nbdcopy(scene.reader, copy)
        assert copy.read_bytes() == expected[WINDOW.start : WINDOW.stop]
        image.write_bytes(expected[WINDOW.start : WINDOW.stop])
        file = f"driver=raw,file.driver=file,file.filename={image}"
        assert "identical" in run("qemu-img", "compare", *scene.as_reader(), file)


def test_only_the_writer_writes(scene: Scene) -> None:
    for reader in (scene.backup, scene.reader):
        assert error_of_a_write(reader, 4096) == EPERM
    write = "write -P 1 0 4096"
    for who in (scene.as_backup(), scene.as_reader()):
        assert attempt("qemu-io", *who, "-c", write).status
    direct = scene.workdir / "direct"
    nbdcopy(scene.upstream, direct)
    assert direct.read_bytes() == scene.content
    assert error_of_a_write(scene.writer, 4096) == "0"
    nbdcopy(scene.upstream, direct)
    assert direct.read_bytes() == scene.content[:4096] + b"x" * 512 + scene.content[4608:]


def test_the_bitmap_is_for_backups(scene: Scene) -> None:
    bitmap = f",x-dirty-bitmap={BITMAP}"
    assert dirty_by_qemu(*scene.as_backup(bitmap)) == [(DIRTY.start, len(DIRTY))]
    mine = run("nbdinfo", f"--map={BITMAP}", scene.backup)
    assert mine == run("nbdinfo", f"--map={BITMAP}", scene.upstream)
    mapped = run("nbdinfo", "--map", scene.backup)
    assert mapped == run("nbdinfo", "--map", scene.upstream)
    # A qemu without the bitmap that it asked for ends; a map without base:allocation fails.
    assert attempt("qemu-img", "map", *scene.as_reader(bitmap)).status
    for context in (BITMAP, "base:allocation"):
        assert attempt("nbdinfo", f"--map={context}", scene.reader).status
    run("qemu-io", *scene.as_writer(), "-c", "write -P 3 64k 64k")
    assert (65536, 65536) in dirty_by_qemu(*scene.as_backup(bitmap))


def said(path: Path, option: bytes) -> bytes:
    """All that a client of a Unix socket is sent that asks one thing and leaves."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(b"\0\0\0\3" + option + encode_option(Opt.ABORT))
        data = b""
        while piece := sock.recv(4096):
            data += piece
        return data


def said_of(path: Path, name: str) -> list[bytes]:
    """What a client is sent that asks for an export in every way there is."""
    structured = encode_option(Opt.STRUCTURED_REPLY)
    return [
        said(path, structured + option)
        for option in (
            encode_option(Opt.GO, encode_info_request(name, [])),
            encode_option(Opt.INFO, encode_info_request(name, [3])),
            encode_option(Opt.SET_META_CONTEXT, encode_meta_query(name, [BITMAP])),
            encode_option(Opt.LIST_META_CONTEXT, encode_meta_query(name, [])),
            encode_option(Opt.EXPORT_NAME, name.encode()),
        )
    ]


def test_who_is_denied_learns_nothing(scene: Scene) -> None:
    hidden, absent, denied = (said_of(scene.unix, name) for name in ("spare", "there", "vm"))
    assert [data.replace(b"spare", b"there") for data in hidden] == absent
    for data in denied[:-1]:
        assert Rep.ERR_POLICY.to_bytes(4) in data
        assert Rep.ERR_UNKNOWN.to_bytes(4) not in data
    for data in absent[:-1]:
        assert Rep.ERR_UNKNOWN.to_bytes(4) in data
    assert denied[-1] == absent[-1]  # EXPORT_NAME has no words for it


def test_an_empty_list_is_found_in_the_log(scene: Scene) -> None:
    """Of who is shown something, nothing is said: most clients are denied most of the exports."""
    assert names(scene.nobody) == []
    assert names(scene.writer) == ["vm"]
    assert scene.gateway.stop() == 0
    [line] = [line for line in scene.gateway.output.splitlines() if "access denied" in line]
    assert "asked=LIST" in line
    assert "exports=2" in line
    assert "why=\"rule 'nobody, and it is told' denies it\"" in line


def test_a_rule_means_a_disk_that_a_pattern_lets_through(servers: Servers, workdir: Path) -> None:
    """A server that has a disk for each file: what is not allowed is had under no name at all."""
    disks = workdir / "disks"
    disks.mkdir()
    for name in ("secret", "vm-1", "vm-2"):
        (disks / name).write_bytes(name.ljust(MIB).encode())
    upstream = servers.nbdkit("file", f"dir={disks}")
    listen, config = workdir / "listen", workdir / "gateway.toml"
    config.write_text(
        f'[[listen]]\nuri = "{unix_uri(listen)}"\n'
        f'[upstream.files]\nuri = "{upstream.uri}"\ncanonical-names = true\n'
        '[[export]]\nname = "*"\nupstream = "files"\n'
        '[[rule]]\nexports = "secret"\ndeny = true\n'
        '[[rule]]\nexports = "vm-2"\npolicies = [ { use = "readonly" } ]\n'
        '[[rule]]\nexports = "*"\n'
    )
    gateway = Process(sys.executable, "-m", "gateway", "serve", "--config", config)
    gateway.ready_when(lambda: listening(unix_uri(listen)), "the gateway listens")
    assert sorted(names(unix_uri(listen))) == ["vm-1", "vm-2"]
    assert not nbdinfo(unix_uri(listen, "vm-1"))["exports"][0]["is_read_only"]
    assert nbdinfo(unix_uri(listen, "vm-2"))["exports"][0]["is_read_only"]
    for name in ("secret", "./secret", "//secret", "SECRET", ""):
        assert attempt("nbdinfo", unix_uri(listen, name)).status, name
    assert gateway.stop() == 0


def test_nobody_learns_what_is_hidden_of_a_pattern(servers: Servers, workdir: Path) -> None:
    """nbdkit has words of its own for a name that is not there, and contexts for any name."""
    disks = workdir / "disks"
    disks.mkdir()
    for name in ("vm-1", "vm-2"):
        (disks / name).write_bytes(bytes(MIB))
    upstream = servers.nbdkit("file", f"dir={disks}")
    listen, config = workdir / "listen", workdir / "gateway.toml"
    config.write_text(
        f'[[listen]]\nuri = "{unix_uri(listen)}"\n'
        f'[upstream.files]\nuri = "{upstream.uri}"\ncanonical-names = true\n'
        '[[export]]\nname = "?*"\nupstream = "files"\n'
        '[[rule]]\nexports = "vm-2"\ndeny = true\nhide = true\n'
        "[[rule]]\n"
    )
    gateway = Process(sys.executable, "-m", "gateway", "serve", "--config", config)
    gateway.ready_when(lambda: listening(unix_uri(listen)), "the gateway listens")
    hidden, absent = said_of(listen, "vm-2"), said_of(listen, "vm-3")
    assert [data.replace(b"vm-2", b"vm-3") for data in hidden] == absent
    assert nbdinfo(unix_uri(listen, "vm-1"))["exports"][0]["contexts"] == ["base:allocation"]
    assert gateway.stop() == 0
