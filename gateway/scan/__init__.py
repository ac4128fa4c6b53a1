"""What goes through a session, message by message, without sockets.

Two scanners look at the bytes of a session where they lie in a receive buffer: `requests` at what the
client sends, `replies` and `chunks` at what the upstream sends. Each parses every header, holds it
against what was promised (`plan`) and what is under way (`traffic`), puts its own cookie over the peer's
in place (or another header in front, where the framings differ), and adds slices of the buffer to a list
that is sent as it is. Payloads are never copied and never looked at. What cannot go on as it stands (an
error, a block status) is taken out of the run of bytes and encoded anew.

Policies come in as data. What only restricts is part of `plan`: words that are legal, longest lengths, ranges
that are barred. A command with a hook is a job that waits for somebody outside (`jobs.Outside`); a rate is a
`traffic.Gatekeeper`, which lets requests through or leaves them unread. A client's export may begin after the
start of the upstream's (`offer.base`): then offsets are the client's until they are checked, and the
upstream's from then on.

    plan.py       which way each command goes, decided once
    requests.py   the client's requests
    replies.py    a simple upstream's replies, and what all replies have in common
    chunks.py     a structured or extended upstream's replies
    early.py      replies to WRITEs whose data has not been sent yet
    partial.py    what has come of a reply in several chunks
    going.py      what ESHUTDOWN means, and the link over which it came
    traffic.py    what is under way
    observed.py   what would have been refused, or held back, by policies that are only observed
    timing.py     how long requests take, by samples
    turn.py       how long one session may take before it is others' turn
    memory.py     what is remembered of it, for the case that the link dies
    asks.py       commands of our own on one link: the steps of jobs (`gateway.jobs`)
    carrying.py   what is under way when a link dies becomes jobs that ask another

The contract of a scanner, which the hub and the tests rely on:

- `feed(buffer, view, start, end, out)` looks at `buffer[start:end]`, appends to `out` what has to be sent,
  and returns the position up to which it needs nothing again. Whoever calls it must present the bytes from
  that position on again, with more bytes after them; or without, if the `turn` was over. Slices in `out`
  point into the buffer, which must stay untouched until they are sent.
- How the bytes are cut into pieces makes no difference to what comes out: tested as a property.
- It raises `WireError` or `Hangup` if it cannot follow its source any more. What is in `out` then is whole, and
  may be sent.
"""
