"""What the peers' own test suites check and a relay could spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from .clients import nbdcopy, nbdinfo, nbdsh, qemu_io, script
from .conftest import Image, make_dirty
from .gateways import Gateways
from .processes import run
from .servers import Servers, Upstream

MIB = 1 << 20


def test_a_dirty_bitmap_has_the_direct_map(servers: Servers, via: Gateways, workdir: Path) -> None:
    disk = workdir / "bitmap.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", disk, "today")
    run("qemu-io", "-f", "qcow2", "-c", "write 1M 128k", "-c", "write 20M 64k", disk)
    upstream = servers.qemu_nbd("-f", "qcow2", "-B", "today", disk)

    map_ = "--map=qemu:dirty-bitmap:today"
    uri = via(upstream)
    through = run("nbdinfo", map_, uri)
    assert through == run("nbdinfo", map_, upstream.uri)
    rows = [line.split()[:3] for line in through.splitlines()]
    assert rows == [
        ["0", "1048576", "0"],
        ["1048576", "131072", "1"],
        ["1179648", "19791872", "0"],
        ["20971520", "65536", "1"],
        ["21037056", "46071808", "0"],
    ]
    assert "qemu:dirty-bitmap:today" in nbdinfo(uri)["exports"][0]["contexts"]
    # Both contexts of one connection, each with its own id.
    assert run("nbdinfo", "--map", uri) == run("nbdinfo", "--map", upstream.uri)


@pytest.mark.parametrize(
    ("size", "clusters"), [("3G", 3), ("8G", 11_000)], ids=["below 4 GiB", "many clusters"]
)
def test_a_backup_saves_the_same_blocks(
    servers: Servers, via: Gateways, workdir: Path, size: str, clusters: int
) -> None:
    """However long the answers: two contexts, in full lengths, of which one ends long before the other."""
    disk = workdir / "backup.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", disk, size)
    run("qemu-img", "bitmap", "--add", "-g", "65536", disk, "today")
    writes = [f"write -q {number * 8192} 4096" for number in range(clusters)]
    writes += ["write -q 2500M 1M"] + (["write -q 5G 1M"] if size == "8G" else [])
    commands = workdir / "commands"
    commands.write_text("\n".join(writes) + "\n")
    # `-t unsafe`: a flush per table costs minutes where the disk is slow, and proves nothing here.
    run("sh", "-c", 'qemu-io -t unsafe -f qcow2 "$1" < "$2"', "sh", disk, commands)
    upstream = servers.qemu_nbd("-r", "-f", "qcow2", "-B", "today", disk)
    for bitmap in ((), ("qemu:dirty-bitmap:today",)):
        through = script("backup", via(upstream), *bitmap)
        assert through == script("backup", upstream.uri, *bitmap)
        assert through["saved"] >= clusters * 4096 + MIB


def test_allocation_depth_has_the_direct_map(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    base, top = workdir / "base.qcow2", workdir / "top.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "16M")
    run("qemu-io", "-f", "qcow2", "-c", "write 0 1M", base)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    run("qemu-io", "-f", "qcow2", "-c", "write 4M 1M", top)
    upstream = servers.qemu_nbd("-f", "qcow2", "-A", top)

    map_ = "--map=qemu:allocation-depth"
    through = run("nbdinfo", map_, via(upstream))
    assert through == run("nbdinfo", map_, upstream.uri)
    depths = [line.split()[2] for line in through.splitlines()]
    assert depths == ["2", "0", "1", "0"]


def test_holes_stay_holes(servers: Servers, via: Gateways, image: Image) -> None:
    """A sparse disk is read in hole chunks, not as zeros: that is half of a backup's speed."""
    upstream = servers.start("qemu-raw", image.path)
    through = script("chunks", via(upstream), 32 * MIB)
    direct = script("chunks", upstream.uri, 32 * MIB)
    assert through["sha256"] == direct["sha256"]

    def holes(report: dict[str, list[list[object]]]) -> list[list[object]]:
        return [chunk for chunk in report["chunks"] if chunk[2] == "hole"]

    assert holes(through) == holes(direct) != []


@pytest.mark.parametrize("errno", ["EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC"])
def test_errors_keep_their_value(errno: str, servers: Servers, via: Gateways) -> None:
    upstream = servers.nbdkit("--filter=error", "memory", "64M", f"error={errno}", "error-rate=1")
    through = script("errors", via(upstream))
    failing = {"read", "write", "zero", "trim", "cache", "status"}
    assert {name: through[name] for name in failing} == dict.fromkeys(failing, errno)
    # The filter lets FLUSH alone; and after all that the connection is still good for it.
    assert through["flush"] == "ok"


@pytest.mark.parametrize("kind", ["qemu-raw", "storage-daemon", "nbdkit", "nbd-server"])
def test_invalid_requests_get_the_errno_of_the_protocol(
    kind: str, servers: Servers, via: Gateways, image: Image
) -> None:
    """Servers differ here and some hang up. Through the gateway it is always the protocol's."""
    upstream = servers.start(kind, image.path)
    through = script("errors", via(upstream))
    for name in ("read", "write", "flush"):
        assert through[name] == "ok"
    if via.repairs:
        past = {name: errno for name, errno in through.items() if " the end" in name}
        assert past == {
            "read past the end": "EINVAL",
            "write past the end": "ENOSPC",
            "zero past the end": "ENOSPC",
            "trim past the end": "EINVAL",
            "status past the end": "EINVAL",
            "read across the end": "EINVAL",
        }
        assert through["unknown flag"] == "EINVAL"


@pytest.mark.parametrize("server", ["qemu-nbd", "nbdkit", "nbd-server"])
def test_writing_to_a_read_only_export_is_eperm(
    server: str, servers: Servers, via: Gateways, image: Image
) -> None:
    if server == "qemu-nbd":
        upstream = servers.qemu_nbd("-r", "-f", "raw", image.path)
    elif server == "nbdkit":
        upstream = servers.nbdkit("-r", "file", image.path)
    else:
        upstream = servers.start("nbd-server", image.path)
        upstream.uri = upstream.named("archive")
    uri = via(upstream)
    export = nbdinfo(uri)["exports"][0]
    assert export["is_read_only"]
    if via.repairs:
        assert not any(export[f"can_{what}"] for what in ("trim", "zero", "fast_zero"))
        seen = script("errors", uri)
        assert (seen["read"], seen["write"], seen["zero"], seen["trim"]) == (
            ("ok", "EPERM", "EPERM", "EPERM")
        )


NAMES = {
    "empty": "",
    "plain": "disk0",
    "4096 bytes": "x" * 4096,
    "4096 bytes of two-byte characters": "é" * 2048,
    "4095 bytes of three-byte characters": "日" * 1365,
    "what URIs and shells trip over": " %2F/../?a=b&c#d'\"\\$(x)",
    "an emoji": "\N{FLOPPY DISK}\N{VARIATION SELECTOR-16}",
}


def test_export_names_arrive_byte_for_byte(servers: Servers, via: Gateways) -> None:
    upstream = servers.nbdkit("info", "mode=exportname")
    wanted = [name.encode().hex() for name in NAMES.values()]
    got = script("names", via(upstream), *(name or "" for name in wanted))
    assert dict(zip(NAMES, got, strict=True)) == dict(zip(NAMES, wanted, strict=True))


def test_write_zeroes_of_128_mib_zeroes_all_of_it(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    """nbd-server zeroes the first 64 MiB only and reports success (Q-N1)."""
    disk = make_dirty(workdir / "dirty", 160 * MIB)
    upstream = servers.nbd_server(disk)
    nbdsh("h.zero(128 << 20, 0, nbd.CMD_FLAG_NO_HOLE)", "-u", via(upstream))
    end = 128 if via.repairs else 64
    qemu_io(upstream.uri, f"read -P 0 0 {end}M", f"read -P 0xff {end}M {160 - end}M")


def test_a_renamed_export(servers: Servers, via: Gateways, image: Image, workdir: Path) -> None:
    upstream = servers.start("nbd-server", image.path)
    if not via.repairs:
        return  # only the gateway has a configuration to rename with
    gateway = via.configured(upstream, {"vm-1": "disk", "old": "archive"})
    listed = nbdinfo(gateway.uri(), "--list")["exports"]
    assert [(e["export-name"], e["description"]) for e in listed] == [
        ("vm-1", "vm-1 of the test"),
        ("old", "old of the test"),
    ]
    nbdcopy(gateway.uri("vm-1"), workdir / "copy")
    assert "identical" in run("qemu-img", "compare", image.path, workdir / "copy")
    assert nbdinfo(gateway.uri("old"))["exports"][0]["is_read_only"]
    # The upstream's own name is nobody's business any more.
    with pytest.raises(AssertionError):
        nbdinfo(gateway.uri("disk"))


def test_two_exports_of_one_server(servers: Servers, via: Gateways, image: Image) -> None:
    upstream: Upstream = servers.start("storage-daemon", image.path)
    gateway = via.before(upstream)
    assert nbdinfo(gateway.uri("disk"))["exports"][0]["export-size"] == image.size
    second = nbdinfo(gateway.uri("second"))["exports"][0]
    assert second["export-size"] == MIB
    assert second["is_read_only"]
    assert second["description"] == "spare"
