"""The demo: what a client meets that believes qemu 3.0.0, and that nothing of it comes through the gateway."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gateway.app import demo
from gateway.app.demo import SERVERS, TRIALS, Seen, Trial, TrialOutcome
from gateway.cli.demo import show
from gateway.embedded import PERSONALITIES, MemoryDisk, Server
from gateway.upstream.configured import StartError
from gateway.uri import MAX_SOCKET_PATH_BYTES, parse_nbd_uri
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP
from gateway.wire.constants import TransmissionFlag as Flag
from tests.embedded.peers import listening

pytestmark = pytest.mark.real

MEETS = {
    "nbdcopy (-e 1, the default)": ("hangs for ever", "copied over one connection"),
    "write, read (--offset)": ("zeros for data, success", "what was written"),
    "CACHE": ("its session ends", "success"),
    "list of meta contexts": ("without its bitmap", "with its bitmap"),
    "write, read (worst case)": ("old data", "what was written"),
}
"""Direct, and through the gateway."""


async def test_what_it_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "UPSTREAM_PORT", 0)  # any
    monkeypatch.setattr(demo, "GATEWAY_PORT", 0)
    monkeypatch.setattr(demo, "PAGE_PORT", 0)
    shown: list[Seen] = []

    with trio.CancelScope() as scope:

        def look(seen: Seen) -> None:
            show(seen)
            assert seen.control.is_socket()
            shown.append(seen)
            scope.cancel()

        await demo.demo(look)
    [seen] = shown
    assert seen.flags_direct & Flag.CAN_MULTI_CONN
    assert seen.flags_through ^ seen.flags_direct == Flag.CAN_MULTI_CONN | Flag.SEND_CACHE
    assert {
        trial.what: (direct.text, through.text) for trial, direct, through in seen.outcomes
    } == MEETS
    for _trial, direct, through in seen.outcomes:
        assert (direct.good, through.good) == (False, True)
    said = capsys.readouterr().out
    assert "CACHE is meant" in said
    assert re.search(r"http://127\.0\.0\.1:\d+/#token=\S{32}\n", said)
    assert f"  nbd-gateway top --socket {seen.control}\n" in said
    assert all(outcome[0] in said for outcome in MEETS.values())


def test_only_the_worst_case_is_not_what_qemu_does() -> None:
    worst = {name for name in SERVERS.values() if PERSONALITIES[name].incoherent_connections}
    assert worst == {"qemu-3.0-incoherent"}
    assert [trial.what for trial in TRIALS if SERVERS[trial.export] in worst] == [
        "write, read (worst case)"
    ]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.what)
async def test_a_proper_server_passes(
    trial: Trial, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "HANG_SECONDS", 60)  # however busy the machine is
    contexts = (BASE_ALLOCATION, DIRTY_BITMAP + "today")
    proper = replace(PERSONALITIES["plain"], contexts=contexts)
    async with listening(Server({"": MemoryDisk(demo.SIZE_BYTES)}, proper), workdir) as uri:
        outcome = await trial.do(parse_nbd_uri(uri))
    assert outcome.good, outcome
    if trial.what.startswith("nbdcopy"):
        assert outcome == TrialOutcome(True, "copied over several connections")


async def test_a_long_directory_for_temporary_files_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("x" * MAX_SOCKET_PATH_BYTES)
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    with pytest.raises(StartError, match=r"set TMPDIR to a shorter directory than /"):
        await demo.demo(lambda _seen: None)
    assert not [*directory.iterdir()]
