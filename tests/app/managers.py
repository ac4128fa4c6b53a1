"""A stand-in for systemd: the socket on which a service says what becomes of it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from pathlib import Path

from tests.tools.patience import HANG_SECONDS

WHO = ("MAINPID=", "MONOTONIC_USEC=", "EXTEND_TIMEOUT_USEC=")
"""What differs from time to time."""


LOOK_SECONDS = 0.1
"""How often it is seen whether the service is there still."""


class ServiceManager:
    """Listens to a service. Each message is the lines of one datagram."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.service: subprocess.Popen[str] | None = None
        """Who is expected to tell something; it has to be there."""

    def environment(self, watchdog_seconds: float | None = None) -> dict[str, str]:
        """What it gives a service."""
        period = (
            {} if watchdog_seconds is None else {"WATCHDOG_USEC": f"{watchdog_seconds * 1e6:.0f}"}
        )
        return os.environ | {"NOTIFY_SOCKET": self.address} | period

    def told(self) -> list[str]:
        """The next message."""
        deadline = time.monotonic() + HANG_SECONDS
        while not select.select([self.socket], [], [], LOOK_SECONDS)[0]:
            assert self.service is None or self.service.poll() is None, "the service has ended"
            assert time.monotonic() < deadline, "it says nothing"
        return self.socket.recv(4096).decode().split("\n")

    def until(self, line: str) -> list[str]:
        """The next message that has a line which begins so."""
        while True:
            told = self.told()
            if any(each.startswith(line) for each in told):
                return told

    def at_once(self, seconds: float = 0) -> list[list[str]]:
        """All messages that are there, or come before none has come for so long."""
        found = []
        while select.select([self.socket], [], [], seconds)[0]:
            found.append(self.told())
        return found

    def close(self) -> None:
        self.socket.close()


def value(told: list[str], key: str) -> str:
    """What a message says of a key."""
    [found] = [line.removeprefix(f"{key}=") for line in told if line.startswith(f"{key}=")]
    return found
