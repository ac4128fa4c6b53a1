"""Servers that are full, killed and started again, while real clients come."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .clients import nbdinfo
from .conftest import Image
from .gateways import MODE, Before
from .loads import ended, reading
from .processes import Finished, Process, attempt, listening, run, wait_until
from .servers import Servers, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a relay just passes it on")

MIB = 1 << 20


def opened(gateway: Before) -> Finished:
    """What a client was told that asks for all that there is to know."""
    return attempt("qemu-img", "info", gateway.uri())


def test_a_server_that_is_killed_and_started_again_is_waited_for(
    servers: Servers, workdir: Path
) -> None:
    path = workdir / "nbdkit"

    def start() -> Process:
        path.unlink(missing_ok=True)
        process = Process("nbdkit", "--foreground", "-U", path, "memory", "16M")
        process.ready_when(lambda: listening(unix_uri(path)), "nbdkit listens")
        return process

    nbdkit = start()
    gateway = Before(workdir, f'uri = "{unix_uri(path)}"')
    for times in range(1, 4):
        assert nbdinfo(gateway.uri())["exports"][0]["export-size"] == 16 * MIB
        nbdkit.kill()
        clients = [gateway.client() for _ in range(8)]
        wait_until(
            lambda times=times: gateway.process.output.count("upstream is down") == times,  # type: ignore[misc] # bound now
            "a client has met a server that is down",
        )
        nbdkit = start()
        assert [(client.wait(), client.output) for client in clients] == [(0, f"{16 * MIB}\n")] * 8
    nbdkit.kill()
    output = gateway.end()
    assert output.count("upstream is down") == 3
    assert output.count("upstream is back") == 3
    assert "client refused" not in output


def test_the_second_server_is_taken_when_the_first_is_killed(workdir: Path, image: Image) -> None:
    paths = [workdir / "first", workdir / "second"]

    def start(path: Path) -> Process:
        command = ("qemu-nbd", "-t", "-e", "0", "-r", "-f", "raw", "-k", path, image.path)
        process = Process(*command)
        process.ready_when(lambda: listening(unix_uri(path)), "qemu-nbd listens")
        return process

    first, second = map(start, paths)
    gateway = Before(workdir, f"uris = {[unix_uri(path) for path in paths]}")
    stays = reading(gateway.uri())
    wait_until(lambda: "session begins" in gateway.process.output, "there is a first client")
    second.kill()  # nobody is there
    assert nbdinfo(gateway.uri())["exports"][0]["export-size"] == image.size
    ended(stays)
    second = start(paths[1])
    explained = run(sys.executable, "-m", "gateway", "explain", workdir / "g.toml")
    uris = " or ".join(unix_uri(path) for path in paths)
    assert f"upstream: disks ({uris}), export ''" in explained
    first.kill()
    for _ in range(3):
        assert nbdinfo(gateway.uri())["exports"][0]["export-size"] == image.size
    second.kill()
    output = gateway.end()
    assert output.count("one server of several is down") == 1
    assert "client refused" not in output


def test_what_may_be_written_is_not_served_of_two_servers(servers: Servers, workdir: Path) -> None:
    uris = [servers.nbdkit("memory", "16M").uri for _ in range(2)]
    gateway = Before(workdir, f"uris = {uris}")
    done = opened(gateway)
    assert done.status != 0
    assert "has several uris, which may lead to different disks" in done.err
    asked = attempt(sys.executable, "-m", "gateway", "explain", workdir / "g.toml")
    assert asked.status == 1
    assert "has several uris, which may lead to different disks" in asked.out
    checked = attempt(sys.executable, "-m", "gateway", "check", workdir / "g.toml")
    assert " or ".join(uris) in checked.out
    gateway.end()


def test_who_waits_in_the_queue_of_a_full_server_is_told_so(
    servers: Servers, workdir: Path, image: Image
) -> None:
    path = workdir / "qemu"
    command = ("qemu-nbd", "-t", "-e", "1", "-r", "-f", "raw", "-k", path, image.path)
    server = Process(*command)
    server.ready_when(lambda: listening(unix_uri(path)), "qemu-nbd listens")
    gateway = Before(workdir, f'uri = "{unix_uri(path)}"\nnegotiate-seconds = 1')
    first = reading(gateway.uri())
    wait_until(lambda: "session begins" in gateway.process.output, "there is a first client")
    said = "has connected and not greeted for 1 s: probably it serves as many clients as it may"
    done = opened(gateway)
    assert done.status != 0
    assert said in done.err  # qemu shows what the server says
    wait_until(lambda: said in gateway.process.output, "the log says so")  # a thread writes it
    first.kill()
    wait_until(lambda: "session ended" in gateway.process.output, "the first has left")
    assert opened(gateway).status == 0
    gateway.end()
    server.kill()


def test_who_is_too_many_waits_until_another_has_left(workdir: Path, image: Image) -> None:
    path = workdir / "qemu"
    command = ("qemu-nbd", "-t", "-e", "1", "-r", "-f", "raw", "-k", path, image.path)
    server = Process(*command)
    server.ready_when(lambda: listening(unix_uri(path)), "qemu-nbd listens")
    uri = unix_uri(path)
    gateway = Before(workdir, f'uri = "{uri}"\nmax-connections = 1\nconnect-seconds = 20')
    first = reading(gateway.uri())
    wait_until(lambda: "session begins" in gateway.process.output, "there is a first client")
    # Not nbdinfo, which begins no session from libnbd 1.22 on.
    clients = [Process("qemu-img", "info", gateway.uri()) for _ in range(4)]
    ended(first)
    assert [each.wait() for each in clients] == [0] * 4, [each.output for each in clients]
    output = gateway.end()
    assert "client refused" not in output
    assert output.index("session ended") < output.index(
        "session begins", output.index("begins") + 9
    )
    server.kill()
