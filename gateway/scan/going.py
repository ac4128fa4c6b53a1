"""A server that goes in good order, and what becomes of the link to it.

A server that is stopped in good order (SIGTERM, `systemctl restart`) finishes what it has begun, and answers
what still comes with ESHUTDOWN. Where sessions survive their links, that is no answer for a client: in a moment
there is another server, which has one. What such a reply is, is decided here, for every link, whoever uses it:

- It is *no reply*. Its command stays in the in-flight table, unanswered, as if the link had died before the
  reply. So it needs no rule of its own. A command that only looks is asked again. A FLUSH is asked again, and
  this one covers nothing. A command that changes the disk may have done so or not (`unknown-writes` and
  `late-write-seconds` say what follows): nbdkit has not carried it out, but proto.md does not promise that for
  all servers.
- The link is *going* from that reply on. No command is sent over it any more. What comes meanwhile waits: the
  client's requests in its socket, asks of our own here (`kept`), the tasks of a bundle in their ports.
- What was sent before may still be answered. Whoever has the link waits for that, `GOES_SECONDS` at most, and
  then leaves it, with DISC where nothing is half sent. From then on it is a dead link: to the session, to the
  bundle and to the rule of losses (`Losses.died`, not `left`). For the server has not flushed what it has
  acknowledged, or has not said so; that it went in good order, and that the end of the file came late, proves
  nothing.

So what follows is what follows when a link dies: see `gateway.hub.session`, `gateway.sessions.surviving` and
`gateway.bundle`. Such a death differs in one thing: nobody is to blame for it. So no command is suspected of
having taken the server down.

Where sessions end with their links, nobody heeds this, and ESHUTDOWN goes to the client as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from gateway.wire.constants import Errno

GOES_SECONDS = 10.0
"""How long a link whose server goes is kept, for the answers to what was sent before, which may come or not. A
server that goes in good order is done with them in a moment. And clients wait for the next link meanwhile; some
of them (disks of virtual machines) wait no longer than 30 s in all."""

WHY = "the server goes: it answers ESHUTDOWN"
"""Why such a link is left."""


class Going:
    """What one link knows of its server's going."""

    __slots__ = ("begun", "heeded", "refused", "says_so")

    def __init__(self) -> None:
        self.heeded = False
        """Somebody will ask again what the link leaves unanswered. If nobody does, ESHUTDOWN is an answer like
        any other."""
        self.begun = False
        """The server goes: nothing is to be sent over the link any more."""
        self.refused: set[int] = set()
        """Our cookies of commands that were answered with ESHUTDOWN."""
        self.says_so: Callable[[], None] = nobody_minds_that_it_goes
        """Called once, when it is `begun`, in the middle of a reply: it may only take note."""

    def heed(self, says_so: Callable[[], None]) -> None:
        """From now on a reply with ESHUTDOWN is no reply."""
        self.heeded, self.says_so = True, says_so

    def is_no_reply(self, error: int) -> bool:
        """Say whether an error is no reply, but the server's way to say that it goes."""
        return self.heeded and error == Errno.ESHUTDOWN

    def refuse(self, ours: int) -> None:
        """The server has answered a command in that way. The command stays in flight."""
        self.refused.add(ours)
        if not self.begun:
            self.begun = True
            self.says_so()

    def waits(self, in_flight: Collection[int]) -> bool:
        """Say whether any of the commands in flight may still be answered."""
        return any(ours not in self.refused for ours in in_flight)

    def forget(self) -> None:
        """The link is gone."""
        self.begun = False
        self.refused.clear()


def nobody_minds_that_it_goes() -> None:
    """Stand in for `Going.says_so`."""
