"""What is only observed is not felt by the client, and told to whoever reads the log."""

from __future__ import annotations

import structlog

from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.wire.constants import Cmd
from gateway.wire.limits import MIB
from tests.relay.gateways import gateway_before

OBSERVED = """
policies = [
    { use = "readonly", mode = "observe" },
    { use = "protect", ranges = ["0-511"], mode = "observe" },
    { use = "limit", connections = 1, mode = "observe" },
]
"""


async def test_what_would_be_refused_passes_and_is_logged() -> None:
    server = Server({"": MemoryDisk(MIB)}, PERSONALITIES["plain"])
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server, export=OBSERVED) as gateway:
            gateway.service.log = structlog.get_logger()
            clients = [gateway.client() for _ in range(2)]
            for client in clients:
                await client.go("", extended=True)
            for client in clients:
                async with client.stream:
                    assert not await client.error(Cmd.WRITE, 0, 4, data=b"here")
                    assert not await client.error(Cmd.WRITE, 4096, 4, data=b"more")
                    assert await client.read(0, 4) == b"here"
    told = [line for line in lines if line["event"].startswith("would be")]
    assert all(line["log_level"] == "warning" for line in told)
    shown = [line for line in told if line["event"] == "would be shown otherwise"]
    assert [line["with"] for line in shown] == [["READ_ONLY"]] * 2
    assert shown[0]["policies"] == ["readonly", "protect", "limit"]
    [denied] = [line for line in told if line["event"] == "would be denied"]
    assert denied["why"] == "limit: 1 connection is open, and 1 may be"
    refused = [line for line in told if line["event"] == "would be refused"]
    assert [(line["command"], line["error"], line["count"]) for line in refused] == 2 * [
        ("WRITE", "EPERM", 2)
    ]
    assert refused[0]["first"] == "protect: WRITE: bytes 0 to 511 are protected"
