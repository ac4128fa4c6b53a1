"""etcd, as real processes: one member, or three over TLS with clients' certificates and passwords."""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

PASSWORD = "a secret"

LOWEST_PORT = 10_900
"""Below are those of NBD, among others; and of etcd, where one serves somebody else."""

PATIENT_SECONDS = 60
"""How long one step of a call may take, on a machine that is busy with other things."""


class Members:
    """The members of one etcd. `uris` are where clients come; all ends with `stop`. `hurried`: they do not wait
    for their disks, for that of a test machine is slow, and nobody needs these data tomorrow.
    """

    def __init__(self, at: Path, count: int, *, tls: bool = False, hurried: bool = True) -> None:
        self.at = at
        self.tls = tls
        self.hurried = hurried and _has_no_fsync()
        scheme = "https" if tls else "http"
        with free_ports(2 * count) as ports:
            self.uris = [f"{scheme}://127.0.0.1:{port}" for port in ports[:count]]
            self._peers = [f"http://127.0.0.1:{port}" for port in ports[count:]]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        if tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(at / "ca-cert.pem"))
            for name, who in (("server", "127.0.0.1"), ("client", "gateway")):
                issued = authority.issue_cert(who)
                issued.private_key_pem.write_to_path(str(at / f"{name}-key.pem"))
                issued.cert_chain_pems[0].write_to_path(str(at / f"{name}-cert.pem"))

    def context(self) -> ssl.SSLContext | None:
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=str(self.at / "ca-cert.pem"))
        context.load_cert_chain(self.at / "client-cert.pem", self.at / "client-key.pem")
        return context

    def start(self, *numbers: int) -> None:
        """Start these members, or all."""
        cluster = ",".join(f"m{i}={uri}" for i, uri in enumerate(self._peers))
        for i in numbers or range(len(self.uris)):
            command = ["etcd", "--name", f"m{i}", "--data-dir", str(self.at / f"m{i}")]
            command += ["--listen-client-urls", self.uris[i]]
            command += ["--advertise-client-urls", self.uris[i]]
            command += ["--listen-peer-urls", self._peers[i]]
            command += ["--initial-advertise-peer-urls", self._peers[i]]
            command += ["--initial-cluster", cluster, "--logger", "zap", "--log-level", "error"]
            command += ["--unsafe-no-fsync"] if self.hurried else []
            if self.tls:
                command += ["--cert-file", str(self.at / "server-cert.pem")]
                command += ["--key-file", str(self.at / "server-key.pem"), "--client-cert-auth"]
                command += ["--trusted-ca-file", str(self.at / "ca-cert.pem")]
            with (self.at / f"m{i}.log").open("ab") as log:
                self._processes[i] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
                )

    def etcdctl(self, *words: str) -> None:
        command = ["etcdctl", "--endpoints", ",".join(self.uris)]
        command += [f"--{what}-timeout={PATIENT_SECONDS}s" for what in ("dial", "command")]
        if self.tls:
            command += ["--cacert", str(self.at / "ca-cert.pem")]
            command += ["--cert", str(self.at / "client-cert.pem")]
            command += ["--key", str(self.at / "client-key.pem")]
        environment = os.environ | {"ETCDCTL_API": "3"}
        subprocess.run([*command, *words], check=True, env=environment, capture_output=True)

    def signal(self, number: signal.Signals, members: Sequence[int]) -> None:
        for i in members:
            if (process := self._processes[i]) is not None:
                process.send_signal(number)

    def kill(self, *members: int) -> None:
        for i in members:
            if (process := self._processes[i]) is not None:
                process.kill()
                process.wait()
                self._processes[i] = None

    def stop(self) -> None:
        self.kill(*range(len(self._processes)))

    def log(self) -> str:
        return "\n".join(each.read_text() for each in sorted(self.at.glob("m*.log")))


@contextmanager
def running(
    at: Path, count: int = 1, *, tls: bool = False, hurried: bool = True
) -> Iterator[Members]:
    at.mkdir(exist_ok=True)
    members = Members(at, count, tls=tls, hurried=hurried)
    try:
        members.start()
        yield members
    finally:
        members.stop()


def _has_no_fsync() -> bool:
    return b"unsafe-no-fsync" in subprocess.run(["etcd", "--help"], capture_output=True).stdout


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Give ports that are free; together, so that no two are one. They are not of those that the kernel gives
    to whoever connects: between this and the start of who is to listen there, somebody always does."""
    sockets: list[socket.socket] = []
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    try:
        while len(sockets) < count:
            with suppress(OSError):  # somebody listens there
                port = random.randrange(LOWEST_PORT, given)
                sockets.append(socket.create_server(("127.0.0.1", port)))
        yield [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
