"""What is shown of upstreams that lead to one server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import trio

from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.status.shown import upstreams_shown
from tests.app.houses import LISTEN, house

CONFIG = f"""
{LISTEN}
[upstream.one]
uri = "nbd+unix:///?socket=DIR/server"
connections = "shared"
[upstream.two]
uri = "nbd+unix:///?socket=DIR/server"
connections = "shared"
[upstream.nobodys]
uri = "nbd+unix:///?socket=DIR/server"
[[export]]
name = "a"
upstream = "one"
upstream-name = ""
[[export]]
name = "b"
upstream = "two"
upstream-name = ""
"""


async def test_sessions_may_be_on_a_connection_of_another(tmp_path: Path) -> None:
    """So their own upstream is there; one that nobody uses is not known."""
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(tmp_path / "server"))
    listening.listen()
    serve = Server({"": MemoryDisk(4096)}).serve
    async with trio.open_nursery() as servers:
        servers.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
        async with house(tmp_path, CONFIG) as there:
            await there.session("a")
            await there.session("b")
            sessions = Counter(id(each.opened.location.server) for each in there.service.running)
            shown = await upstreams_shown(there.service, sessions)
        servers.cancel_scope.cancel()
    found = [(each["state"], each["sessions"], each["connections"]) for each in shown]
    assert found == [("up", 1, 1), ("up", 1, 0), ("unknown", 0, 0)]
