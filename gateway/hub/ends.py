"""How a session ends: the states of its two sides, what may happen, and what becomes of it, as a table. Pure.

A session has a client's side and a link's. Each may fail at any moment, on its own, while the other one still
has something to say. A flag for each thing that has happened would allow for thousands of combinations, most
of which mean nothing. So a session is in one of a few states (`Sides`), and `MOVES` says for each state and
event what becomes of it. What is not in `MOVES` cannot happen. `gateway.hub.ending` says what has happened, and
does what `Then` says.

How a session ends, with what is still done then:

- the client says DISC, or closes between two requests: what is under way is finished and answered, and the
  client may go. We FLUSH what it has not flushed, then the upstream gets DISC;
- we `finish` it (shutting down): the same, with the client's half-sent WRITE taken to its end first;
- the client breaks the protocol, or vanishes: nothing more is sent to it. Replies under way are read and
  dropped before the link is closed, for a server may not bear a connection reset under its replies (nbdkit 1.32
  ends over it). DISC follows, unless a WRITE is half sent upstream: that must never be completed. (A client
  that was killed between two requests has closed; that is a goodbye until sending to it fails);
- the link breaks the protocol, or dies, and nobody has the session survive: every command under way is answered
  EIO, and the client is disconnected.

Two ways in which a link dies do not end its session. All that was written over the link is known to be durable,
and the session is held and quiet: then it waits for another link (`LinkIs.AWAY`), and ends only if there is
none when it goes on. Or others have it live on: it is carried over, and asks a bundle from then on
(`LinkIs.NONE`).

No request looks at any of this: after each move the session notes, beside the state, what a request has to know
(may anything be sent to the client, to the link).
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, StrEnum
from itertools import product, starmap
from typing import NamedTuple


class ClientIs(Enum):
    """The client's side of a session. It only ever goes down this list."""

    ASKING = "we begin its requests"
    STOPPING = "no request is begun any more; what is under way is answered, and then it may go"
    TOLD = "the same; but it did not ask to go, so it gets the time to read what it is told"
    GONE = "nothing is sent to it any more, and nothing comes from it"


class LinkIs(Enum):
    """The link's side of a session."""

    OPEN = "requests are sent over it, and replies come"
    MUTE = "nothing can be sent; what the server has answered may still be there to read"
    CLOSED = "nothing comes from it either"
    AWAY = "the same, and that harms nothing: the session waits for another one"
    NONE = "there is none: others are asked"
    LEFT = "the session has ended"

    @property
    def takes_nothing(self) -> bool:
        """Nothing can be sent over it."""
        return self not in (LinkIs.OPEN, LinkIs.NONE)

    @property
    def gives_nothing(self) -> bool:
        """Nothing comes over it, nor by way of others."""
        return self in (LinkIs.CLOSED, LinkIs.AWAY, LinkIs.LEFT)


class Sides(NamedTuple):
    """The state of a session."""

    client: ClientIs
    link: LinkIs


class Event(Enum):
    """What happens to a session and may end it."""

    GOODBYE = "the client has said DISC, or closed between two requests"
    FINISH = "we end it in good order"
    CLIENT_LOST = "the client has broken the protocol, or vanished"
    CLIENT_LOST_IN_WRITE = "the same, with a WRITE of it half sent to the link"
    SEND_FAILED = "nothing can be sent over the link any more"
    SEND_FAILED_SURVIVING = (
        "the same, and others have it live on when the link is seen to have died"
    )
    LINK_LOST = "the link has died, or was given up"
    LINK_LOST_SURVIVING = "the same, and others have the session live on"
    LINK_LOST_AT_REST = "the same, and nothing is lost with it: all is quiet, and durable"
    CARRIED_OVER = "others are asked from now on what was under way over the link that died"
    RELINKED = "it goes on over another link"
    UNLINKED = "it goes on by asking others"
    FAILS = "nobody has it live on: what is under way fails"
    FAILED = "all of that is answered"
    DONE = "no request is begun any more, nothing is under way, and all answers are sent"
    DONE_UNFLUSHED = "the same, and something that the client has written is not flushed"
    CLOSE = "it ends now, whatever is under way"
    ENDED = "all that it held is given back"


class Cause(StrEnum):
    """Why a session has ended, in one word of a closed list, for whoever counts. The reason says it to us."""

    CLIENT_DISC = "client-disc"
    """The client has said DISC."""
    CLIENT_EOF = "client-eof"
    """It has closed between two requests, or inside one."""
    CLIENT_RESET = "client-reset"
    """Its connection has failed."""
    CLIENT_PROTOCOL = "client-protocol"
    """It has broken the protocol."""
    CLIENT_STUCK = "client-stuck"
    """It has held up others for too long."""
    TLS_LOST = "tls-lost"
    """TLS with the client has broken."""
    UPSTREAM_LOST = "upstream-lost"
    """The connection to the server is lost, and nobody had the session live on."""
    UPSTREAM_PROTOCOL = "upstream-protocol"
    """The server has broken the protocol."""
    UPSTREAM_CHANGED = "upstream-changed"
    """The server has come back as another disk, or with less than the client was promised."""
    DENIED_BY_RELOAD = "denied-by-reload"
    """The rules that are in force now deny it; by time as well."""
    EXPORT_GONE = "export-gone"
    """The configuration in force does not have the export any more, and a rule ends such sessions."""
    HOME_LOST = "home-lost"
    """This gateway may not be its disk's home in the fleet any more."""
    BY_OPERATOR = "disconnected-by-operator"
    """`nbd-gateway disconnect`, or its ticket was removed."""
    DRAIN = "drain"
    """Its listener is drained, and the deadline of that has passed; or its disk has its home at another
    gateway."""
    EXPIRED = "expired"
    """The ticket by which it was opened is over: its time, or its use; or it has lasted as long as a session of
    its listener may (`lifetime-seconds`)."""
    SHUTDOWN = "shutdown"
    """We shut down, and told it to end."""
    UPGRADED = "upgraded"
    """A newer process of the gateway serves, and this one's time is over."""
    INTERNAL = "internal"
    """A bug of ours; the log has more."""


class Takes(Enum):
    """Whether the reason that comes with an event is why the session ends."""

    NEVER = "it has another reason already, or none is needed"
    IF_BUSY = "if something was under way: else it was ending in good order"
    ALWAYS = "yes"


class Then(Enum):
    """What the session does after an event."""

    NOTHING = "all goes on"
    DROP_CLIENT = "drop what was to be sent to the client"
    DROP_BOTH = "drop also what was to be sent to the link, and send nothing over it any more"
    DROP_LINK = "drop what was to be sent to the link"
    REST = "remember why the link is gone, until it goes on or has another one"
    SURVIVE = "have others carry it over"
    FAIL = "answer all that is under way with an error"
    FLUSH = "FLUSH what the client has left unflushed: later nobody could prove that it is not lost"
    FLUSH_ALONE = "the same, and let the client go, which waits for nothing"
    PART = "say DISC to the upstream, and close"
    CLOSE = "close"


class Move(NamedTuple):
    """What becomes of a session."""

    sides: Sides
    takes: Takes = Takes.NEVER
    hurries: bool = False
    """Nobody waits for the session's end, or we are shutting down: the end must not take long any more."""
    then: Then = Then.NOTHING


class NotLegal(Exception):
    """Such an event cannot happen in this state."""


def move(sides: Sides, event: Event) -> Move:
    """Say what an event makes of a session. Raises `NotLegal`."""
    found = MOVES.get((sides, event))
    if found is None:
        where = f"the client is {sides.client.name} and the link {sides.link.name}"
        raise NotLegal(f"{event.name} where {where}")
    return found


class _Row(NamedTuple):
    """A line of the table: what becomes of sides that are in one of these states."""

    clients: Collection[ClientIs]
    links: Collection[LinkIs]
    client: ClientIs | None = None
    """What the client's side is afterwards; None: what it was."""
    link: LinkIs | None = None
    takes: Takes = Takes.NEVER
    hurries: bool = False
    then: Then = Then.NOTHING


_ASKING, _STOPPING, _TOLD, _GONE = ([each] for each in ClientIs)
_OPEN, _MUTE, _CLOSED, _AWAY, _NONE, _LEFT = ([each] for each in LinkIs)
_THERE = _STOPPING + _TOLD
_ENDING = _THERE + _GONE
_LOSABLE = _OPEN + _MUTE + _AWAY
_NOT_OPEN = _MUTE + _CLOSED + _AWAY + _NONE
_ANY = _OPEN + _NOT_OPEN

C, L, T = ClientIs, LinkIs, Then  # short, so that a row fits in a line

_TABLE: dict[Event, tuple[_Row, ...]] = {
    Event.GOODBYE: (
        _Row(_ASKING, _ANY, C.STOPPING, takes=Takes.ALWAYS),
        _Row(_ENDING, _ANY),
    ),
    Event.FINISH: (
        _Row(_ASKING, _ANY, C.TOLD, takes=Takes.ALWAYS, hurries=True),
        _Row(_ENDING, _ANY, hurries=True),
    ),
    Event.CLIENT_LOST: (
        _Row(_ASKING, _ANY, C.GONE, takes=Takes.ALWAYS, hurries=True, then=T.DROP_CLIENT),
        # It has said goodbye, or there is another reason.
        _Row(_STOPPING, _ANY, C.GONE, hurries=True, then=T.DROP_CLIENT),
        # It was to be told the reason, and can no longer be.
        _Row(_TOLD, _ANY, C.GONE, takes=Takes.ALWAYS, hurries=True, then=T.DROP_CLIENT),
        _Row(_GONE, _ANY),
    ),
    Event.CLIENT_LOST_IN_WRITE: (
        # The WRITE will never be whole, so nothing may follow it.
        _Row(_ASKING, _OPEN, C.GONE, L.MUTE, Takes.ALWAYS, True, T.DROP_BOTH),
        _Row(_STOPPING, _OPEN, C.GONE, L.MUTE, Takes.NEVER, True, T.DROP_BOTH),
        _Row(_TOLD, _OPEN, C.GONE, L.MUTE, Takes.ALWAYS, True, T.DROP_BOTH),
        _Row(_ASKING, _NOT_OPEN, C.GONE, None, Takes.ALWAYS, True, T.DROP_BOTH),
        _Row(_STOPPING, _NOT_OPEN, C.GONE, None, Takes.NEVER, True, T.DROP_BOTH),
        _Row(_TOLD, _NOT_OPEN, C.GONE, None, Takes.ALWAYS, True, T.DROP_BOTH),
        _Row(_GONE, _ANY),
    ),
    Event.SEND_FAILED: (
        _Row(_ASKING, _OPEN, C.STOPPING, L.MUTE, Takes.ALWAYS, True, T.DROP_LINK),
        _Row(_ENDING, _OPEN, None, L.MUTE, hurries=True, then=T.DROP_LINK),
    ),
    Event.SEND_FAILED_SURVIVING: (
        # Whoever reads from the link will see that it has died.
        _Row(_ASKING + _THERE, _OPEN, None, L.MUTE, then=T.DROP_LINK),
        _Row(_GONE, _OPEN, None, L.MUTE, hurries=True, then=T.DROP_LINK),
    ),
    Event.LINK_LOST: (
        _Row(_ASKING, _LOSABLE, None, L.CLOSED, then=T.FAIL),
        _Row(_ENDING, _LOSABLE + _CLOSED, None, L.CLOSED, then=T.FAIL),
    ),
    Event.LINK_LOST_SURVIVING: (
        _Row(_ASKING, _LOSABLE, None, L.CLOSED, then=T.SURVIVE),
        # A session that ends anyway needs no other link.
        _Row(_ENDING, _LOSABLE + _CLOSED, None, L.CLOSED, then=T.FAIL),
    ),
    Event.LINK_LOST_AT_REST: (
        _Row(_ASKING, _LOSABLE + _NONE, None, L.AWAY, then=T.REST),
        _Row(_ENDING, _LOSABLE + _CLOSED, None, L.CLOSED, then=T.FAIL),
    ),
    Event.CARRIED_OVER: (_Row([*ClientIs], _CLOSED, None, L.NONE),),
    Event.RELINKED: (_Row(_ASKING, _ANY, None, L.OPEN),),
    Event.UNLINKED: (_Row(_ASKING, _ANY, None, L.NONE),),
    Event.FAILS: (
        _Row(_ASKING, _CLOSED, C.STOPPING, takes=Takes.ALWAYS, hurries=True),
        _Row(_THERE, _CLOSED, takes=Takes.IF_BUSY, hurries=True),
        # The reason stays that the client went first: a server may well close on half a WRITE.
        _Row(_GONE, _CLOSED, hurries=True),
    ),
    Event.FAILED: (
        _Row(_THERE, _CLOSED, C.TOLD),
        _Row(_GONE, _CLOSED),
    ),
    Event.DONE: (
        _Row(_ENDING, _OPEN, then=T.PART),
        _Row(_ENDING, _NOT_OPEN, then=T.CLOSE),
    ),
    Event.DONE_UNFLUSHED: (
        # A client that has said goodbye does not wait for that FLUSH.
        _Row(_STOPPING, _OPEN, C.GONE, hurries=True, then=T.FLUSH_ALONE),
        _Row(_TOLD + _GONE, _OPEN, hurries=True, then=T.FLUSH),
        _Row(_ENDING, _NOT_OPEN, then=T.CLOSE),
    ),
    Event.CLOSE: (
        _Row(_ASKING, _ANY, C.STOPPING, takes=Takes.ALWAYS, hurries=True),
        _Row(_ENDING, _ANY, hurries=True),
    ),
    Event.ENDED: (_Row(_ENDING, _ANY, None, L.LEFT),),
}


def _all_moves() -> dict[tuple[Sides, Event], Move]:
    # Nothing happens any more to a session that has ended. Events may still come from callers that do not know.
    moves = {
        (ended, event): Move(ended) for ended in map(Sides, _ENDING, _LEFT * 3) for event in Event
    }
    for event, rows in _TABLE.items():
        for row in rows:
            for sides in starmap(Sides, product(row.clients, row.links)):
                assert (sides, event) not in moves, f"two rows say what {event} makes of {sides}"
                becomes = Sides(row.client or sides.client, row.link or sides.link)
                moves[sides, event] = Move(becomes, row.takes, row.hurries, row.then)
    return moves


MOVES = _all_moves()
"""What each event makes of each state; what is not in here cannot happen."""
