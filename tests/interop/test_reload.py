"""A running gateway takes up another configuration, under load, from real clients."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import trustme

from tests.tls.handshakes import directory
from tests.tools.patience import HANG_SECONDS

from .clients import nbdinfo
from .gateways import MODE, Configured
from .loads import ended, reading, reported
from .processes import Finished, Process, attempt, wait_until
from .servers import Servers, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="only the gateway reloads")

MIB = 1 << 20


class Reloaded(Configured):
    """It waits for its clients as long as a test likes."""

    def write(self, text: str) -> None:
        super().write(text)
        self.config.write_text(f"drain-seconds = {HANG_SECONDS:g}\n{self.config.read_text()}")

    def reload(self) -> Finished:
        return attempt(sys.executable, "-m", "gateway", "reload", self.config)

    def reloads(self) -> int:
        return self.log.count("configuration reloaded")


EXPORTS = "".join(
    f'[[export]]\nname = "{name}"\nupstream = "{upstream}"\nupstream-name = ""\n'
    for name, upstream in (("x", "disks"), ("y", "disks"), ("m", "memory"))
)
EVERYBODY = '[[rule]]\nexports = "*"\n'
LIMITED = '[[rule]]\nexports = "*"\npolicies = [{ use = "limit", in-flight = 4 }]\n'
DENY = '[[rule]]\nexports = "x"\ndeny = true\ndisconnect = true\n'


def upstreams(uri: str, more: str = "") -> str:
    return f'[upstream.disks]\nuri = "{uri}"\n{more}[upstream.memory]\nuri = "memory:64M"\n'


def said(client: Process) -> dict[str, object]:
    assert client.wait() == 0, client.output
    return reported(client)


def test_many_reloads_under_load(servers: Servers, workdir: Path) -> None:
    """By the command, by SIGHUP, with something else in the file each time, and mistakes in between."""
    upstream = servers.nbdkit("memory", "64M")
    texts = [
        upstreams(upstream.uri) + EXPORTS + EVERYBODY,
        upstreams(upstream.uri, "connect-seconds = 5\n") + EXPORTS + LIMITED,
        f'[[listen]]\nuri = "{unix_uri(workdir / "more.sock")}"\n'
        + upstreams(upstream.uri, "quirks = []\n")
        + EXPORTS,
        "[log]\nlevel = 3\n",
    ]
    gateway = Reloaded(workdir, texts[0])
    lasting = [reading(gateway.uri(name)) for name in ("x", "m", "m")]
    wait_until(lambda: gateway.process.output.count("session begins") == 3, "there is load")
    before = gateway.process.descriptors()
    for number in range(1, 41):
        text = texts[number % len(texts)]
        gateway.write(text)
        wrong = gateway.process.output.count("stays as it was")
        good = gateway.reloads()
        if number % 10 == 0:
            done = gateway.reload()
            assert done.status == (text is texts[3]), str(done)
        else:
            gateway.process.signal(signal.SIGHUP)
        wait_until(
            lambda good=good, wrong=wrong: (  # type: ignore[misc] # bound now
                gateway.process.output.count("stays as it was") > wrong or gateway.reloads() > good
            ),
            "it has been reloaded",
        )
        assert nbdinfo(gateway.uri("y"))["exports"][0]["export-size"] == 64 * MIB
    gateway.write(texts[0])
    assert gateway.reload().status == 0
    assert gateway.reloads() == 31  # three of four, and the last
    wait_until(lambda: gateway.process.descriptors() <= before, "what is gone has been closed")
    for client in lasting:
        ended(client)
    assert "internal error" not in gateway.process.output
    assert "Traceback" not in gateway.process.output
    assert gateway.process.stop() == 0


def test_a_rule_ends_the_sessions_that_it_denies(servers: Servers, workdir: Path) -> None:
    upstream = servers.nbdkit("memory", "64M")
    gateway = Reloaded(workdir, upstreams(upstream.uri) + EXPORTS + EVERYBODY)
    denied = reading(gateway.uri("x"))
    others = [reading(gateway.uri(name)) for name in ("y", "m")]
    wait_until(lambda: gateway.process.output.count("session begins") == 3, "there is load")
    gateway.write(upstreams(upstream.uri) + EXPORTS + DENY + EVERYBODY)
    done = gateway.reload()
    assert done.status == 0, str(done)
    assert "sessions: 2 kept, 1 ended" in done.out
    report = said(denied)
    # What was begun is answered; what the client asks after that is asked of nobody.
    assert report["died"]
    for other in others:
        ended(other)
    assert gateway.process.stop() == 0


def test_it_is_not_called_reloaded_where_a_part_is_not(workdir: Path) -> None:
    ca = trustme.CA()
    pki = directory(workdir / "pki", ca, server=ca.issue_cert("localhost"))
    secure = (
        '[upstream.m]\nuri = "memory:1M"\n'
        f'[[listen]]\nuri = "nbds+unix:///?socket={workdir}/s"\ncertificates = "{pki}"\n'
    )
    gateway = Reloaded(workdir, secure)
    key = pki / "server-key.pem"
    content = key.read_bytes()
    key.write_bytes(b"nonsense")
    done = gateway.reload()
    assert done.status == 1
    assert "reloaded" not in done.out + done.err
    assert f"stay as they were: {key}: is no key" in done.err
    assert "all but that is taken up: listeners: 2 kept" in done.err
    key.write_bytes(content)
    done = gateway.reload()
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("reloaded: ")
    assert gateway.process.stop() == 0


def test_many_at_once_and_while_it_ends(servers: Servers, workdir: Path) -> None:
    upstream = servers.nbdkit("--filter=delay", "memory", "64M", "rdelay=10")
    gateway = Reloaded(workdir, upstreams(upstream.uri) + EXPORTS)
    command = (sys.executable, "-m", "gateway", "reload", gateway.config)
    asked = [Process(*command) for _ in range(4)]
    while any(each.running for each in asked):
        before = gateway.reloads()
        # No more than the interpreter bears: its handlers call each other if signals come without a pause.
        for _ in range(3):
            gateway.process.signal(signal.SIGHUP)
        wait_until(lambda: gateway.reloads() > before, "a signal is obeyed")  # noqa: B023 # at once
    assert [each.wait() for each in asked] == [0] * 4
    client = reading(gateway.uri("x"))
    wait_until(lambda: "session begins" in gateway.process.output, "there is load")
    gateway.process.signal(signal.SIGTERM)
    wait_until(lambda: "shutting down" in gateway.process.output, "it drains")
    done = gateway.reload()
    assert done.status == 1
    assert "the gateway is shutting down" in done.err
    assert gateway.process.wait() == 0
    client.wait()
    nobody = gateway.reload()
    assert nobody.status == 1
    assert "no gateway listens at" in nobody.err
