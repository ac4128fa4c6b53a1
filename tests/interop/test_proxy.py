"""Behind haproxy, which says whose connections it hands on: with the PROXY protocol, both versions of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from .clients import nbdcopy, nbdinfo
from .conftest import Image
from .gateways import MODE
from .processes import Process, listening, run, wait_until
from .servers import Servers, free_port

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="a blind relay understands no header")

GATEWAY = """
[[listen]]
uri = "{listen}"
proxy-protocol = [{trusted}]
[upstream.qemu]
uri = "{upstream}"
[log]
format = "json"
"""
# It looks whether the gateway is there, too: with LOCAL headers, in version 2.
HAPROXY = """
global
    log stdout format raw daemon
defaults
    mode tcp
    log global
    option tcplog
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen nbd
    bind 127.0.0.1:{port}
    server gateway {address} {says} check inter 100ms
"""


@pytest.mark.parametrize("says", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_haproxy(says: str, transport: str, servers: Servers, image: Image, workdir: Path) -> None:
    upstream = servers.start("qemu-raw", image.path)
    if transport == "tcp":
        address = f"127.0.0.1:{free_port()}"
        listen, trusted = f"nbd://{address}", '"127.0.0.1"'
    else:
        address = f"unix@{workdir / 'gateway'}"
        listen, trusted = f"nbd+unix:///?socket={workdir / 'gateway'}", '"unix"'
    config = workdir / "gateway.toml"
    config.write_text(GATEWAY.format(listen=listen, trusted=trusted, upstream=upstream.named("")))
    gateway = Process(sys.executable, "-m", "gateway", "serve", "--config", str(config))
    gateway.ready_when(lambda: listening(listen), "the gateway listens")
    port = free_port()
    balancer_config = workdir / "haproxy.cfg"
    balancer_config.write_text(HAPROXY.format(port=port, address=address, says=says))
    balancer = Process("haproxy", "-db", "-f", balancer_config)
    uri = f"nbd://127.0.0.1:{port}"
    balancer.ready_when(lambda: listening(uri), "haproxy listens")

    assert nbdinfo(uri)["exports"][0]["export-size"] == image.size
    copy = workdir / "copy.img"
    nbdcopy(uri, copy)
    assert run("cmp", image.path, copy) == ""

    def sessions() -> list[dict[str, str]]:
        lines = map(json.loads, gateway.output.splitlines())
        return [line for line in lines if line["event"] == "session begins"]

    # haproxy's own log names its clients, each when it has gone.
    def served() -> set[str]:
        return set(re.findall(r"(?m)^(127\.0\.0\.1:\d+) \[", balancer.output))

    wait_until(lambda: {line["client"] for line in sessions()} <= served(), "haproxy logged all")
    assert sessions()
    balancer.stop()
    assert gateway.stop() == 0
    for line in sessions():
        assert line["via"].startswith("127.0.0.1:" if transport == "tcp" else "unix:pid=")
        assert line["via"] != line["client"]
    assert "hung up on" not in gateway.output
