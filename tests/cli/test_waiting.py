"""Who sits at a terminal is told what is waited for, while a gateway takes its time."""

from __future__ import annotations

import os
import socket
import subprocess
from io import FileIO
from pathlib import Path

import pytest

from tests.cli.programs import GATEWAY
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

SAID = {
    "switch": (
        ("nbd://127.0.0.1:1",),
        "waiting for the server, which is tried again for connect-seconds where it refuses, and for what is"
        " under way; within 30 s (--within)",
    ),
    "pause": (("--within", "7"), "waiting for what is under way; within 7 s (--within)"),
}


@pytest.mark.parametrize("verb", SAID)
def test_what_is_waited_for(verb: str, workdir: Path) -> None:
    """The gateway here says nothing until its caller has."""
    more, expected = SAID[verb]
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.bind(str(workdir / "control"))
        gateway.listen()
        gateway.settimeout(HANG_SECONDS)
        terminal, theirs = os.openpty()
        command = [*GATEWAY, verb, "disk", *more, "--socket", str(workdir / "control")]
        caller = subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, text=True)
        os.close(theirs)
        with FileIO(terminal) as shown:
            asked, _address = gateway.accept()
            with asked:
                assert b"\n" in asked.recv(4096)
                said = b""
                while b"\n" not in said:
                    said += shown.read(4096)
                asked.sendall(b'{"ok": true, "done": ["it is"], "problems": []}\n')
                asked.shutdown(socket.SHUT_WR)
                out, _nothing = caller.communicate(timeout=HANG_SECONDS)
    assert out == "it is\n"
    assert said.decode() == f"nbd-gateway: {expected}\r\n"
    assert caller.returncode == 0
