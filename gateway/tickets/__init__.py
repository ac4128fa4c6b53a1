"""Tickets: exports that are made while the gateway runs, kept on disk, and over at a time or after a use.

store.py      one file for each, whole or not there, whatever happens to the machine
clock.py      two clocks, of which none can be set back
kept.py       a ticket and how it stands: until when, who uses it; and the policy by which it says so itself
due.py        when each is to be looked at, because it may be over
roll.py       all that there are, in memory, and which of them are in force
following.py  as they are kept, whoever has done it: read at the start, brought by a fleet, said by a process
keeping.py    which of two processes keeps them, and whose turn it is
book.py       what this gateway does: made, renewed, used, removed, over

Each knows those above it, and none below.

A name leads to a ticket by `Config.route`, as any name does: the configuration in force looks into the book's
mapping of names. `Access` finds its policies there. All else (sessions, pauses, switches, losses) sees an
export like others. That a ticket is over is seen by whoever asks for it in the same moment, because its first
policy says so. Its sessions are ended when something is due and the book looks: it says what is over, and
`Service` (`gateway.sessions.service`) ends them in good order.
"""
