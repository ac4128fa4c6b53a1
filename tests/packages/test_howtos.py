"""Pages whose programs are too large for every run of the tests, or of another index."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.gateways import Configured, disks
from tests.interop.processes import Process, listening, run
from tests.interop.servers import free_port, unix_uri
from tests.walkthrough import run as walk
from tests.walkthrough import steps

from .libvirts import Libvirt, libvirt
from .roots import TOP

pytestmark = pytest.mark.real

HOWTO = TOP / "docs/howto"
DOMAIN = """
<domain type='qemu'>
  <name>vm-1</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


@pytest.fixture
def daemon(workdir: Path) -> Iterator[Libvirt]:
    with libvirt(workdir) as made:
        yield made


def test_ovirt(workdir: Path) -> None:
    """Its daemon is a program of the environment that the tests run in."""
    walk((HOWTO / "ovirt.md").read_text(), workdir)


def test_a_domain_of_libvirts_has_its_disk(daemon: Libvirt, workdir: Path) -> None:
    """As its page has it, but for the processor, which is emulated."""
    port = str(free_port())
    gateway = Configured(workdir, disks('uri = "memory:64M"'), base=f"nbd://127.0.0.1:{port}")
    [page] = [each.text for each in steps((HOWTO / "libvirt.md").read_text()) if each.file]
    xml = workdir / "disk.xml"
    xml.write_text(page.replace("type='kvm'", "type='qemu'").replace("10809", port))
    with daemon.domain(xml, "vm-1"):
        daemon.qemu_io("vm-1", "write -P 7 0 4k")
        assert "read 4096/4096" in run(
            "qemu-io", "-f", "raw", "-c", "read -P 7 0 4k", f"nbd://127.0.0.1:{port}"
        )
    gateway.end()


def test_virtnbdbackup(daemon: Libvirt, workdir: Path) -> None:
    """A full backup and an incremental one, over TLS between two gateways, and what is made of them again."""
    disk, xml, backup = (workdir / name for name in ("disk.qcow2", "vm.xml", "backup"))
    run("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
    xml.write_text(DOMAIN.format(disk=disk))
    run(sys.executable, "-m", "gateway", "pki", "init", workdir / "pki")
    secure = f"nbds+unix:///?socket={workdir}/secure"
    beside_the_machine = Process(
        *(sys.executable, "-m", "gateway", "serve"),
        *(unix_uri(workdir / "hypervisor/vm.sock"), "--listen", secure),
        *("--tls-certificates", workdir / "pki"),
    )
    beside_the_machine.ready_when(lambda: listening(secure), "it listens")
    plain = unix_uri(workdir / "sockets/vm.sock")
    beside_the_program = Process(
        *(sys.executable, "-m", "gateway", "serve"),
        *(f"{secure}&tls-hostname=localhost&tls-certificates={workdir / 'pki'}", "--listen", plain),
    )
    beside_the_program.ready_when(lambda: listening(plain), "it listens")

    def back_up(level: str) -> None:
        words = ("--uri", daemon.uri, "--domain", "vm-1", "--level", level, "--noprogress")
        where = ("--output", backup, "--scratchdir", workdir)
        run("virtnbdbackup", *words, *where, "--socketfile", workdir / "sockets/vm.sock")

    with daemon.domain(xml, "vm-1"):
        daemon.qemu_io("vm-1", "write -P 7 1M 64k")
        back_up("full")
        daemon.qemu_io("vm-1", "write -P 8 8M 64k")
        back_up("inc")
    assert beside_the_program.output.count("session begins") >= 2
    changed = [each.stat().st_size for each in backup.glob("vda.inc.*.data")]
    assert len(changed) == 1
    assert changed[0] < 1 << 20, "what has not changed was left out"
    restored = workdir / "restored"
    run("virtnbdrestore", "--uri", daemon.uri, "--input", backup, "--output", restored)
    same = ("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", disk, restored / disk.name)
    assert "identical" in run(*same)
    for gateway in (beside_the_program, beside_the_machine):
        assert gateway.stop() == 0
