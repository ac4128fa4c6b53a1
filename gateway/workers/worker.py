"""One worker, as the supervisor knows it."""

from __future__ import annotations

import os
import signal

import trio

from gateway.handover.channel import Channel
from gateway.handover.message import ChannelMessage


class Worker:
    """What there is of it, while it lives and between two lives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: trio.Process | None = None
        self.channel: Channel | None = None
        self.run = ""
        """What the ids of its sessions begin with."""
        self.first = trio.Event()
        """It has begun once, or has failed for good."""
        self.attempts = 0
        """How often it was not ready, one time after the other."""
        self.gone = trio.Event()
        """Set, and replaced, when it has ended."""
        self.serves = False
        """It has begun, and can be spoken to."""
        self.prepared: trio.Event = trio.Event()
        self.problems: list[str] = []
        """What it has said is in the way, when it was `prepared`."""
        self.reloaded: trio.Event = trio.Event()
        self.done: list[str] = []
        self.restarts = 0
        self.waiting: list[tuple[ChannelMessage, float]] = []
        """Clients for it, until it serves; and until when each waits."""

    def say(self, message: ChannelMessage) -> bool:
        """Tell it something; say whether it is there to hear it."""
        if self.channel is None or self.channel.over:
            for descriptor in message.descriptors:
                os.close(descriptor)
            return False
        self.channel.say(message)
        return True

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
