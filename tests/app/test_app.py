"""The composition root, where it can be looked at without a process of its own."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import pytest
import trio
import trio.testing

from gateway.admin.asking import ask
from gateway.app import run
from gateway.config import parse
from gateway.embedded import MemoryDisk, Server
from gateway.hub.hub import BUG_SECONDS
from gateway.upstream.configured import upstreams
from gateway.upstream.errors import Unreachable
from gateway.wire.constants import Rep
from tests.embedded.peers import Client, listening


@pytest.mark.parametrize(
    ("upstream", "call", "says"),
    [
        ('uri = "memory:1M"', "socketpair", "cannot connect to the server in here: "),
        ('command = ["nbdkit", "null"]', "socket", "cannot start the server nbdkit null: "),
    ],
)
async def test_an_upstream_without_descriptors_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, upstream: str, call: str, says: str
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    config = parse(f'[[listen]]\nuri = "nbd://h"\n[upstream.main]\n{upstream}\n', "test")
    async with trio.open_nursery() as nursery, upstreams(config, nursery, None) as servers:
        with monkeypatch.context() as patch:
            patch.setattr(socket, call, none_left)
            with pytest.raises(Unreachable) as caught:
                await servers["main"].connector.connect()
    assert f"{says}{os.strerror(errno.EMFILE)}" in caught.value.text
    assert caught.value.reply == Rep.ERR_SHUTDOWN


BESIDE = (
    "gateway.app.reload.Reloader.do_what_is_asked",
    "gateway.app.reload.Reloader.look_again_as_time_passes",
    "gateway.app.reload.Reloader.watch_file",
    "gateway.app.signals.Obeying.run",
    "gateway.app.run.say_left_out",
    "gateway.app.run.see_to_upstreams",
    "gateway.hub.hub.cut_off_who_holds_up_others",
    "gateway.hub.hub.loosen_who_holds_up_kin",
    "gateway.hub.hub.Hub._open_doors",
    "gateway.net.tally.Tally.run",
    "gateway.sessions.upkeep.check_health",
    "gateway.upstream.warm.Warm.run",
    "gateway.app.arrivals.take_clients",
    "gateway.admin.control.ControlSocket.run",
)


@pytest.mark.parametrize("task", BESIDE)
async def test_no_bug_of_what_goes_on_beside_the_clients_ends_them(
    workdir: Path,
    task: str,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is in the log, and begun anew in a moment."""
    text = """
        [[listen]]
        uri = "nbd+unix:///?socket=DIR/s"
        [upstream.main]
        uri = "nbd+unix:///?socket=DIR/sock"
        warm = 1
        health-check-seconds = 1000
        [control]
        socket = "DIR/c"
    """
    failed: list[object] = []
    *names, name = task.split(".")
    whole = resolve_name(".".join(names))
    rightly = getattr(whole, name)

    async def fail(*arguments: object) -> None:
        if trio.current_time() < BUG_SECONDS:
            failed.append(task)
            raise UnicodeError("label too long")
        await rightly(*arguments)

    monkeypatch.setattr(whole, name, fail)
    listens = trio.Event()
    config = parse(text.replace("DIR", str(workdir)), "test")
    server = Server({"": MemoryDisk(1 << 20)})
    async with listening(server, workdir), trio.open_nursery() as nursery:
        nursery.start_soon(partial(run.serve, config, listening=lambda _uris: listens.set()))
        await listens.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert failed
        mock_clock.jump(BUG_SECONDS)
        client = Client(await trio.open_unix_socket(str(workdir / "s")))
        await client.go("")
        assert (await ask(workdir / "c", "reload")).problems[0].startswith("it came from the")
        await client.stream.aclose()
        nursery.cancel_scope.cancel()
    assert capsys.readouterr().err.count("internal error beside the sessions") == len(failed)
