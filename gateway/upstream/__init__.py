"""Upstreams: how one is reached, what is negotiated with it, and the link that comes of it.

What there is:

server.py        one upstream of the configuration, or where an export was switched to
recipe.py        what it is made of: its settings, over a backend
backends.py      what it leads to: an address, or what we run; and whose disks are there
configured.py    those of a configuration, made once and kept through reloads
mode.py          over how many connections it serves
coherence.py     whether several may be used
news.py          what the log is told of how it is

On the way to a link:

slots.py         how many connections there may be to a backend, and who gives one up
connecting.py    connects to one of its places
circuits.py      which of them is next, and when; pure
handshake.py     one connection: its greeting, TLS, one option after the other
greeting.py      brings one as far as it is good for any client
warm.py          keeps such ones ready for the next clients, and sees how the server is
option_phase.py  what is asked on one for a client, and what is known by then
option_room.py   how many exports may be looked at over one connection; pure
negotiation.py   all that is asked for a client, over one connection after another
ladder.py        how much of the protocol it is asked for, and when for less; pure
examined.py      what an INFO has shown of it, and need not be asked again; pure
allowance.py     how long all of that may take
link.py          what comes of it
errors.py        why there is none

What LIST shows:

listing.py       of all upstreams, as their exports are called here
listed.py        of one, asked for once for all who want it
"""
