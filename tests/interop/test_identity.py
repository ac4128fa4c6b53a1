"""Servers that come back with another disk: what was flushed is gone, and no client may be told otherwise."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from .gateways import Before
from .processes import Process, listening, wait_until
from .rawclient import REQUEST, RawClient
from .servers import Servers, free_port, unix_uri, with_export

BLOCK = 4096
MINE = b"MINE" * (BLOCK // 4)
SIZE = 1 << 20
MAGIC = 0x25609513


class Client:
    """One that has written some blocks, and flushed each."""

    def __init__(self, uri: str, blocks: int = 4) -> None:
        self._raw = RawClient(uri)
        for number in range(blocks):
            assert not self.ask(1, number * BLOCK, BLOCK, MINE)
            assert not self.ask(3)

    def ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"") -> int:
        """Ask, and give the error."""
        self._raw.socket.sendall(REQUEST.pack(MAGIC, 0, command, 1, offset, length) + data)
        return self._raw.reply(0)[1]

    def expect_end(self) -> None:
        """What it reads is never what was there before; and its session ends."""
        with suppress(OSError, EOFError):
            while True:
                self._raw.socket.sendall(self._raw.read_request(2, 0, BLOCK))
                _cookie, error, data = self._raw.reply(BLOCK)
                assert error or data == MINE, "old data"

    def expect_data(self) -> None:
        """Its session goes on, on its disk."""
        self._raw.socket.sendall(self._raw.read_request(2, 0, BLOCK))
        assert self._raw.reply(BLOCK)[1:] == (0, MINE)
        assert not self.ask(3)

    def close(self) -> None:
        self._raw.close()


@contextmanager
def client_of(workdir: Path, uri: str, *more: str) -> Iterator[tuple[Client, Before]]:
    gateway = Before(workdir, "\n".join((f'uri = "{uri}"', *more)))
    client = Client(gateway.uri())
    try:
        yield client, gateway
    finally:
        client.close()
        gateway.end()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cut(process: Process) -> None:
    """End whatever serves a connection for a process that listens."""
    for pid in children(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def between(path: Path, server: Path) -> Process:
    """A relay: to end a connection, and not its server."""
    process = Process("socat", f"UNIX-LISTEN:{path},fork,unlink-early", f"UNIX-CONNECT:{server}")
    process.ready_when(lambda: listening(unix_uri(path)), "socat listens")
    return process


def socket_of(uri: str) -> Path:
    return Path(uri.partition("socket=")[2])


def test_nbd_server_with_copyonwrite(workdir: Path, servers: Servers) -> None:
    disk = workdir / "cow.img"
    disk.write_bytes(b"base" * (SIZE // 4))
    upstream = servers.nbd_server(
        disk, generic=f"[cow]\nexportname = {disk}\ncopyonwrite = true\nflush = true\n"
    )
    with client_of(workdir, with_export(upstream.uri, "cow")) as (client, gateway):
        for pid in children(upstream.process.pid):
            os.kill(pid, signal.SIGKILL)
        client.expect_end()
    wait_until(lambda: "nbd-server-own-disks" in gateway.log, "it is logged")


@pytest.mark.parametrize("connections", ["per-client", "shared"])
def test_nbdkit_tmpdisk(connections: str, workdir: Path, servers: Servers) -> None:
    server = socket_of(servers.nbdkit("tmpdisk", str(SIZE)).uri)
    relay = between(workdir / "relay", server)
    said = f'connections = "{connections}"'
    with client_of(workdir, unix_uri(workdir / "relay"), said) as (client, gateway):
        cut(relay)
        client.expect_end()
    wait_until(lambda: "another disk" in gateway.log, "it is logged")
    relay.kill()


def test_qemu_nbd_with_snapshot(workdir: Path) -> None:
    disk, path = workdir / "base.img", workdir / "q"
    disk.write_bytes(b"base" * (SIZE // 4))

    def start() -> Process:
        made = Process("qemu-nbd", "-t", "--snapshot", "-f", "raw", "-k", path, disk)
        made.ready_when(lambda: listening(unix_uri(path)), "qemu-nbd listens")
        return made

    first = start()
    with client_of(workdir, unix_uri(path)) as (client, gateway):
        first.kill()
        path.unlink(missing_ok=True)
        second = start()
        client.expect_end()
        second.kill()
    wait_until(lambda: "another disk" in gateway.log, "it is logged")


def test_two_disks_behind_a_relay(workdir: Path, servers: Servers) -> None:
    """The same disk is recognised, and so is another."""
    files = [workdir / "one", workdir / "other"]
    for each in files:
        each.write_bytes(bytes(SIZE))
    first, second = (socket_of(servers.nbdkit("file", each).uri) for each in files)
    now = workdir / "now"
    now.symlink_to(first)
    relay = between(workdir / "relay", now)
    with client_of(workdir, unix_uri(workdir / "relay")) as (client, gateway):
        cut(relay)
        client.expect_data()
        now.unlink()
        now.symlink_to(second)
        cut(relay)
        client.expect_end()
    wait_until(lambda: "4 of 4 probes differ" in gateway.log, "it is logged")
    relay.kill()


def test_two_disks_behind_haproxy(workdir: Path, servers: Servers) -> None:
    """It leads to the second as soon as the first is gone."""
    config, port = workdir / "haproxy.cfg", free_port()
    uri = f"nbd://127.0.0.1:{port}"
    first, second = (servers.nbdkit("memory", str(SIZE)) for _ in range(2))
    config.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"listen disks\n bind 127.0.0.1:{port}\n"
        f" server first unix@{socket_of(first.uri)} check inter 100ms\n"
        f" server second unix@{socket_of(second.uri)} backup\n"
    )
    proxy = Process("haproxy", "-db", "-f", config)
    proxy.ready_when(lambda: listening(uri), "haproxy listens")
    with client_of(workdir, uri) as (client, gateway):
        first.process.kill()
        client.expect_end()
    wait_until(lambda: "another disk" in gateway.log, "it is logged")
    proxy.kill()


def test_who_trusts_goes_on(workdir: Path, servers: Servers) -> None:
    """The proof that the others find something."""
    relay = between(workdir / "relay", socket_of(servers.nbdkit("tmpdisk", str(SIZE)).uri))
    said = 'identity = "trust"'
    with client_of(workdir, unix_uri(workdir / "relay"), said) as (client, _gateway):
        cut(relay)
        with pytest.raises(AssertionError, match="old data"):
            client.expect_end()
    relay.kill()
