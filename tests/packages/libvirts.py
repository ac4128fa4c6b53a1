"""libvirt's daemon, with all that it keeps below a directory. The processor of its domains is emulated; they
have a disk, and nothing on it that could be started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.processes import Process, attempt, run

# Where it listens for backups is another directory for it than for us: what is between has a place.
BEGIN = """
for each in /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt; do
    mkdir -p "$each"
    mount -t tmpfs tmpfs "$each"
done
mount --bind "$1/hypervisor" "$1/sockets"
mkdir /etc/libvirt/qemu
cat >/etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
END
cat >/etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "$1/daemon"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
END
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/pid"
"""
DISK = "/machine/peripheral/virtio-disk0/virtio-backend"


@dataclass(frozen=True)
class Libvirt:
    """A daemon that runs. `uri` is what clients of libvirt call it."""

    there: Path

    @property
    def uri(self) -> str:
        return f"qemu:///system?socket={self.there}/daemon/libvirt-sock"

    def virsh(self, *command: str | Path) -> str:
        return run("virsh", "--connect", self.uri, *command)

    @contextmanager
    def domain(self, xml: Path, name: str) -> Iterator[None]:
        """Have a domain that runs."""
        self.virsh("define", xml)
        self.virsh("start", name)
        try:
            yield
        finally:
            self.virsh("destroy", name)

    def qemu_io(self, name: str, command: str) -> None:
        """Have a domain's qemu do something with its disk, as if its guest had. What it says is not told."""
        told = f'qemu-io -d {DISK} "{command}"'
        self.virsh("qemu-monitor-command", name, "--hmp", told)


@contextmanager
def libvirt(there: Path) -> Iterator[Libvirt]:
    """Have one, in a directory."""
    for name in ("daemon", "hypervisor", "sockets"):
        (there / name).mkdir()
    process = Process("unshare", "--mount", "sh", "-ec", BEGIN, "sh", there)
    daemon = Libvirt(there)
    answers = ("virsh", "--connect", daemon.uri, "version")
    process.ready_when(lambda: attempt(*answers).status == 0, "libvirt's daemon answers")
    try:
        yield daemon
    finally:
        print(process.output)
        assert process.stop() == 0
