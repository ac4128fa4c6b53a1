"""The links of one export that act as one: several for speed, one for many clients, and the next one when one
dies.

Sessions' jobs ask a *bundle*, where a session of its own asks its link. A bundle has one *line* for each link:
our cookies, what is under way, the scanner of its replies. It says which line does what, and answers each ask
exactly once, however many links that takes.

What must hold:

- *A byte has one line.* What is asked goes by the stripe that it is in, so whoever has been told that a byte is
  written reads it back, under both readings of CAN_MULTI_CONN. What spans stripes is cut at their borders.
- *A FLUSH covers what was answered before it was sent.* So one may join another only as long as that one has
  not been sent. A server with CAN_MULTI_CONN flushes for all its connections, so one line does it for all.
- *Lines are changed at a standstill*: nothing is under way, and what was written over one line is flushed
  before it is read or written over another.
- *What is acknowledged and not flushed may be gone with the server*, and NBD has no way to ask. It is
  remembered. When all links have died, the sessions are told (`gateway.losses.rule`), or we look for it, or we
  write it again (`recovery`).
- *What was asked and not answered may have happened, may happen yet, or may not.* Reads are asked again. A
  write is read back first; if it is not there, it is asked again when the old one can hardly come any more,
  and until then whatever overlaps it waits.
- *Whoever leaves leaves nothing behind*: what it asked and was not sent is forgotten, and what comes of the
  rest is dropped (`Work.leave`).

In the order in which one builds on the other:

    line.py        one link: what is under way on it, and the scanner of its replies
    stripes.py     where ranges are cut, and which line has which part
    lines.py       which lines there are, and which of them are used
    ports.py       how sessions come in, and whose turn it is
    pieces.py      what is asked of lines, and what must wait for what
    flushes.py     who waits for which FLUSH
    room.py        FLUSHes that make room for what is kept
    deadly.py      what recoveries ask that may be what takes the server down
    stalls.py      lines that say nothing
    work.py        what sessions ask, from their ports to the lines and back
    recovery.py    what is done when lines have changed, step by step
    mending.py     carries that out
    standstill.py  when that is done, and how a bundle is up again
    core.py        the bundle: lines come and go, and it all goes on
    again.py       when a lost link is made again, and whether it is what was promised

All are pure (import-linter holds them to it): no socket, no clock of their own, no await. `gateway.links` has
their sockets. A model with a server that has a volatile cache, and dies whenever it likes, holds them to the
above (tests/bundle).
"""
