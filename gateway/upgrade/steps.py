"""An upgrade, step by step: who does what in the older process and in the newer one, as two tables. Pure.

Each process is in one state, and something happens to it: the other one says something, or ends, a person asks,
time has passed. `OLDER` and `NEWER` say for each state and event what comes next and what is done (`Act`), in
that order. What is not in a table cannot happen there, or means nothing: then nothing is done (`step`).

What must hold, whoever dies when (`tests/upgrade/test_steps.py` tries all of it):

- *One accepts.* The older process stops accepting before it says `go`, and the newer one begins when it hears
  that. In between, clients wait in the kernel's queue of the same socket, and none is refused.
- *Somebody accepts.* Both have the listening sockets until the older one ends. If the newer one ends, however,
  as long as the older one is there, the older one accepts again. If the older one ends, the newer one accepts,
  also when it had not heard `go`. So an older one that is told to end kills a newer one that is not ready: that
  would serve else, and if it hangs, keep the sockets, so that nobody could listen there again.
- *Nothing changes before `ready`.* Until then the newer process has read its configuration, and opened what is
  new there, and the older one serves as if nobody had asked. If anything fails, all is as it was.
- *What is lost is not lost.* What the older process has still to tell somebody it gives to the newer one before
  it says `bye`, keeps it until it hears `thanks`, and ends only then.
- *One upgrade at a time*: an older process that still drains has a newer one already.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class OlderIs(Enum):
    """What the older process is at."""

    ALONE = "it serves, and nobody else does"
    STARTING = "the newer process is being prepared"
    GOING = "it accepts nobody any more, and waits to hear that the newer process does"
    DRAINING = "the newer process serves; here are clients still"
    ENDING = (
        "its time is over: its sessions end, and their clients come again, to the newer process"
    )
    LEAVING = "here are no clients any more; the newer process is given what is left"
    STOPPING = "it was told to end: its sessions end"
    STOPPED = "the same, and here are no clients any more; the newer process is given what is left"
    ENDED = "it ends"


class NewerIs(Enum):
    """What the newer process is at."""

    PREPARING = "it reads its configuration, and opens what is new there"
    ALONE_SOON = "the same, but the older process has died"
    READY = "all is there, and it waits to be told to go"
    BESIDE = "it serves, and the older process has clients still"
    STOPPING = "it was told to end, and ends after the older process"
    ALONE = "it serves, and nobody else does"
    ENDED = "it ends"


class Happening(Enum):
    """What happens."""

    ASKED = "somebody asks for an upgrade"
    READY = "the newer process is ready"
    FAILED = "the newer process says that it cannot be, or says nothing in time"
    SERVING = "the newer process accepts"
    OTHER_DIED = "the other process has ended without a word"
    EMPTY = "the last client has left, and nothing of any disk is under way"
    DEADLINE = "sessions had their time"
    STOP = "the newer process was told to end"
    TOLD = "this process was told to end"
    BYE = "the older process has given all that it had"
    THANKS = "the newer process has all of it"
    PREPARED = "all is there that the configuration needs"
    GO = "the older process accepts nobody any more"


class Act(Enum):
    """What is done then, at once and in order."""

    START = "start the newer process, and give it the doors"
    REFUSE = "say who drains still"
    KILL_NEWER = "end the newer process"
    STOP_ACCEPTING = "accept nobody; the sockets stay open"
    SAY_GO = "tell the newer process to accept"
    SAY_DONE = "tell who asked that it is done"
    SAY_NOT_DONE = "tell who asked what was in the way"
    ACCEPT_AGAIN = "accept, as before"
    TAKE_BACK = "what was given is ours again: nobody else is there"
    FINISH = "end the sessions in good order; their clients come again"
    DRAIN = "end as after SIGTERM: the sessions in good order, and then all of it"
    GO = "go: nothing is left to do"
    GIVE_REST = "give what is left, and say bye"
    SAY_READY = "tell the older process that all is there"
    ACCEPT = "accept"
    SAY_SERVING = "tell the older process that we accept"
    HAVE_ALL = "every disk is ours: nobody else is there"
    SAY_THANKS = "tell the older process that it may go"
    SAY_FAILED = "tell the older process why we cannot be"
    SAY_STOP = "tell the older process that we were told to end"


_O, _N, _E, _A = OlderIs, NewerIs, Happening, Act

OLDER: Mapping[tuple[OlderIs, Happening], tuple[OlderIs, tuple[Act, ...]]] = {
    (_O.ALONE, _E.ASKED): (_O.STARTING, (_A.START,)),
    (_O.ALONE, _E.TOLD): (_O.ENDED, (_A.DRAIN,)),
    (_O.STARTING, _E.ASKED): (_O.STARTING, (_A.REFUSE,)),
    (_O.STARTING, _E.READY): (_O.GOING, (_A.STOP_ACCEPTING, _A.SAY_GO)),
    (_O.STARTING, _E.FAILED): (_O.ALONE, (_A.KILL_NEWER, _A.SAY_NOT_DONE)),
    (_O.STARTING, _E.OTHER_DIED): (_O.ALONE, (_A.KILL_NEWER, _A.SAY_NOT_DONE)),
    (_O.STARTING, _E.STOP): (_O.ALONE, (_A.KILL_NEWER, _A.SAY_NOT_DONE)),
    # The end of the channel would have it serve.
    (_O.STARTING, _E.TOLD): (_O.ENDED, (_A.KILL_NEWER, _A.SAY_NOT_DONE, _A.DRAIN)),
    (_O.GOING, _E.ASKED): (_O.GOING, (_A.REFUSE,)),
    (_O.GOING, _E.SERVING): (_O.DRAINING, (_A.SAY_DONE,)),
    # One that says nothing is ended before anybody else accepts: it may have heard `go`.
    (_O.GOING, _E.FAILED): (
        _O.ALONE,
        (_A.KILL_NEWER, _A.ACCEPT_AGAIN, _A.TAKE_BACK, _A.SAY_NOT_DONE),
    ),
    (_O.GOING, _E.OTHER_DIED): (
        _O.ALONE,
        (_A.KILL_NEWER, _A.ACCEPT_AGAIN, _A.TAKE_BACK, _A.SAY_NOT_DONE),
    ),
    (_O.GOING, _E.STOP): (_O.STOPPING, (_A.SAY_NOT_DONE, _A.DRAIN)),
    (_O.GOING, _E.TOLD): (_O.STOPPING, (_A.SAY_DONE, _A.DRAIN)),
    (_O.DRAINING, _E.ASKED): (_O.DRAINING, (_A.REFUSE,)),
    (_O.DRAINING, _E.EMPTY): (_O.LEAVING, (_A.GIVE_REST,)),
    (_O.DRAINING, _E.DEADLINE): (_O.ENDING, (_A.FINISH,)),
    (_O.DRAINING, _E.TOLD): (_O.STOPPING, (_A.DRAIN,)),
    (_O.DRAINING, _E.STOP): (_O.STOPPING, (_A.DRAIN,)),
    (_O.DRAINING, _E.OTHER_DIED): (_O.ALONE, (_A.KILL_NEWER, _A.ACCEPT_AGAIN, _A.TAKE_BACK)),
    (_O.ENDING, _E.ASKED): (_O.ENDING, (_A.REFUSE,)),
    (_O.ENDING, _E.EMPTY): (_O.LEAVING, (_A.GIVE_REST,)),
    (_O.ENDING, _E.TOLD): (_O.STOPPING, (_A.DRAIN,)),
    (_O.ENDING, _E.STOP): (_O.STOPPING, (_A.DRAIN,)),
    (_O.ENDING, _E.OTHER_DIED): (_O.ALONE, (_A.KILL_NEWER, _A.ACCEPT_AGAIN, _A.TAKE_BACK)),
    (_O.LEAVING, _E.ASKED): (_O.LEAVING, (_A.REFUSE,)),
    (_O.LEAVING, _E.THANKS): (_O.ENDED, (_A.DRAIN,)),
    (_O.LEAVING, _E.TOLD): (_O.STOPPED, (_A.DRAIN,)),
    (_O.LEAVING, _E.STOP): (_O.STOPPED, (_A.DRAIN,)),
    # What was given is here still.
    (_O.LEAVING, _E.OTHER_DIED): (_O.ALONE, (_A.KILL_NEWER, _A.ACCEPT_AGAIN, _A.TAKE_BACK)),
    (_O.LEAVING, _E.FAILED): (_O.ALONE, (_A.KILL_NEWER, _A.ACCEPT_AGAIN, _A.TAKE_BACK)),
    # Who tells a gateway to end means all of it: nobody accepts again, whoever dies.
    (_O.STOPPING, _E.EMPTY): (_O.STOPPED, (_A.GIVE_REST,)),
    (_O.STOPPED, _E.THANKS): (_O.ENDED, (_A.GO,)),
    (_O.STOPPED, _E.OTHER_DIED): (_O.ENDED, (_A.GO,)),
    (_O.STOPPED, _E.FAILED): (_O.ENDED, (_A.GO,)),
}

NEWER: Mapping[tuple[NewerIs, Happening], tuple[NewerIs, tuple[Act, ...]]] = {
    (_N.PREPARING, _E.PREPARED): (_N.READY, (_A.SAY_READY,)),
    (_N.PREPARING, _E.FAILED): (_N.ENDED, (_A.SAY_FAILED, _A.DRAIN)),
    (_N.PREPARING, _E.TOLD): (_N.ENDED, (_A.SAY_STOP, _A.DRAIN)),
    (_N.PREPARING, _E.OTHER_DIED): (_N.ALONE_SOON, ()),
    (_N.ALONE_SOON, _E.PREPARED): (_N.ALONE, (_A.HAVE_ALL, _A.ACCEPT)),
    (_N.ALONE_SOON, _E.FAILED): (_N.ENDED, (_A.DRAIN,)),
    (_N.ALONE_SOON, _E.TOLD): (_N.ENDED, (_A.DRAIN,)),
    (_N.READY, _E.GO): (_N.BESIDE, (_A.ACCEPT, _A.SAY_SERVING)),
    (_N.READY, _E.TOLD): (_N.ENDED, (_A.SAY_STOP, _A.DRAIN)),
    (_N.READY, _E.OTHER_DIED): (_N.ALONE, (_A.HAVE_ALL, _A.ACCEPT)),
    (_N.BESIDE, _E.BYE): (_N.ALONE, (_A.HAVE_ALL, _A.SAY_THANKS)),
    (_N.BESIDE, _E.OTHER_DIED): (_N.ALONE, (_A.HAVE_ALL,)),
    # Who manages services ends all that is left of one when its main process has ended. So that is last.
    (_N.BESIDE, _E.TOLD): (_N.STOPPING, (_A.SAY_STOP, _A.DRAIN)),
    (_N.STOPPING, _E.BYE): (_N.ENDED, (_A.SAY_THANKS,)),
    (_N.STOPPING, _E.OTHER_DIED): (_N.ENDED, ()),
    (_N.ALONE, _E.TOLD): (_N.ENDED, (_A.DRAIN,)),
}


def older_step(state: OlderIs, event: Happening) -> tuple[OlderIs, tuple[Act, ...]]:
    """Give what comes next in the older process, and what is done."""
    return OLDER.get((state, event), (state, ()))


def newer_step(state: NewerIs, event: Happening) -> tuple[NewerIs, tuple[Act, ...]]:
    """Give what comes next in the newer process, and what is done."""
    return NEWER.get((state, event), (state, ()))
