"""The real servers of the field, each started as its users start it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .processes import Process, listening, run, wait_until

KINDS = (
    "qemu-raw",
    "qemu-qcow2",
    "storage-daemon",
    "nbdkit",
    "nbdkit-no-sr",
    "nbdkit-oldstyle",
    "nbd-server",
)


@dataclass
class Upstream:
    """One running server. `uri` names its main export."""

    kind: str
    uri: str
    process: Process | Daemon
    # What a client sees there, as far as a gateway in between may change it.
    structured: bool = True
    block_sizes: bool = True
    newstyle: bool = True
    info_size: bool = True  # nbd-server answers INFO with a size of 0 (Q-N21)
    # nbdkit 1.32 -o offers FLUSH, FUA, TRIM, WRITE_ZEROES and CACHE, and refuses each of them.
    plain_only: bool = False

    def named(self, export: str) -> str:
        """The URI of another export of this server."""
        return with_export(self.uri, export)


class Daemon:
    """A server that insists on going into the background: known by its pid file only."""

    def __init__(self, command: list[str], pidfile: Path) -> None:
        run(*command)
        wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), "it wrote its pid")
        self.command = command
        self.pid = int(pidfile.read_text())
        self.output = ""

    @property
    def running(self) -> bool:
        stat = Path(f"/proc/{self.pid}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def stop(self) -> None:
        if self.running:
            self.signal(signal.SIGTERM)
        wait_until(lambda: not self.running, f"{self.command[0]} has ended")

    def kill(self) -> None:
        if self.running:
            self.signal(signal.SIGKILL)
        wait_until(lambda: not self.running, f"{self.command[0]} was killed")


def with_export(uri: str, export: str) -> str:
    """The same server, another export."""
    scheme, _, rest = uri.partition("://")
    rest, _, query = rest.partition("?")
    host = rest.partition("/")[0]
    return f"{scheme}://{host}/{quote(export, safe='')}" + (f"?{query}" if query else "")


def unix_uri(path: Path, export: str = "") -> str:
    return f"nbd+unix:///{quote(export, safe='')}?socket={path}"


def free_port() -> int:
    """A TCP port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Servers:
    """Starts servers for one test, and ends them all after it.

    `prefix` is a command that runs another, for servers that are not those of this machine.
    """

    def __init__(self, workdir: Path, prefix: Sequence[str] = ()) -> None:
        self.workdir = workdir
        self.prefix = prefix
        self._started: list[Process | Daemon] = []

    def start(self, kind: str, image: Path) -> Upstream:
        """A server of any of KINDS that serves a copy of `image` to many clients at once."""
        makers: dict[str, Callable[[Path], Upstream]] = {
            "qemu-raw": lambda disk: self.qemu_nbd(disk, "-f", "raw"),
            "qemu-qcow2": self._qcow2,
            "storage-daemon": self._storage_daemon,
            "nbdkit": lambda disk: self.nbdkit("file", disk),
            "nbdkit-no-sr": lambda disk: self.nbdkit("--no-sr", "file", disk),
            "nbdkit-oldstyle": lambda disk: self.nbdkit("-o", "file", disk),
            "nbd-server": self.nbd_server,
        }
        disk = self.workdir / f"disk{len(self._started)}"
        run("cp", "--sparse=always", image, disk)
        upstream = makers[kind](disk)
        upstream.kind = kind
        return upstream

    def qemu_nbd(self, *arguments: str | Path) -> Upstream:
        path = self._socket()
        # -e 0 is "as many as like to", and with it qemu offers multi-conn.
        process = Process(
            *(*self.prefix, "qemu-nbd", "--persistent", "--shared=0", "--discard=unmap"),
            *("-k", path, *arguments),
        )
        return self._ready("qemu-nbd", unix_uri(path), process)

    def nbdkit(self, *arguments: str | Path) -> Upstream:
        path = self._socket()
        process = Process(*self.prefix, "nbdkit", "--foreground", "-U", path, *arguments)
        upstream = self._ready("nbdkit", unix_uri(path), process)
        upstream.newstyle = "-o" not in arguments
        upstream.plain_only = not upstream.newstyle
        upstream.structured = upstream.newstyle and "--no-sr" not in arguments
        upstream.block_sizes = "blocksize-policy" in str(arguments)
        return upstream

    def nbd_server(self, disk: Path, *, generic: str = "") -> Upstream:
        """Exports "disk" and, of the same file, "archive", which is read-only. `generic` is more of its
        configuration for all.
        """
        port = free_port()
        config = self.workdir / f"nbd-server{port}.conf"
        config.write_text(
            f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n"
            f"{generic}"
            f"[disk]\nexportname = {disk}\ntrim = true\nflush = true\nfua = true\n"
            f"[archive]\nexportname = {disk}\nreadonly = true\n"
            f"[log]\nexportname = {disk}\n"
        )
        pidfile = config.with_suffix(".pid")
        # Its -d would keep it in the foreground, and serve one client only.
        command = [*self.prefix, "nbd-server", "-C", str(config), "-p", str(pidfile)]
        process = Daemon(command, pidfile)
        upstream = self._ready("nbd-server", f"nbd://127.0.0.1:{port}/disk", process)
        upstream.structured = upstream.block_sizes = upstream.info_size = False
        return upstream

    def _qcow2(self, disk: Path) -> Upstream:
        qcow2 = disk.with_suffix(".qcow2")
        run(*self.prefix, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, qcow2)
        disk.unlink()
        return self.qemu_nbd("-f", "qcow2", qcow2)

    def _storage_daemon(self, disk: Path) -> Upstream:
        """Exports "disk" and, of another file, "second", which is read-only."""
        second = disk.with_suffix(".second")
        with second.open("wb") as file:
            file.truncate(1 << 20)
        path = self._socket()
        process = Process(
            *(*self.prefix, "qemu-storage-daemon"),
            *("--blockdev", f"file,node-name=disk,filename={disk},discard=unmap"),
            *("--blockdev", f"file,node-name=second,filename={second},read-only=on"),
            *("--nbd-server", f"addr.type=unix,addr.path={path},max-connections=0"),
            *("--export", "nbd,id=disk,node-name=disk,name=disk,writable=on"),
            *("--export", "nbd,id=second,node-name=second,name=second,description=spare"),
        )
        return self._ready("storage-daemon", unix_uri(path, "disk"), process)

    def _socket(self) -> Path:
        return self.workdir / f"server{len(self._started)}"

    def _ready(self, kind: str, uri: str, process: Process | Daemon) -> Upstream:
        self._started.append(process)
        wait_until(
            lambda: listening(uri) or not process.running, f"{process.command[0]} listens at {uri}"
        )
        assert process.running, f"{process.command} ended at once:\n{process.output}"
        return Upstream(kind, uri, process)

    def stop(self) -> None:
        for process in reversed(self._started):
            process.stop()
            if process.output:
                # pytest shows it when the test has failed.
                print(f"--- {' '.join(process.command)}\n{process.output[-4000:]}")
