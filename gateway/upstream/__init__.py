"""Upstreams: how one is reached, what is negotiated with it, and the link that comes of it.

server.py       one upstream of the configuration, or where an export was switched to
recipe.py       what it is made of: its settings, over a backend
backends.py     what it leads to: an address, or what we run; and whose disks are there
maker.py        makes servers of recipes
connections.py  how many connections there may be to a backend, and who gives one up
places.py       which of its addresses is connected to next, and when; pure
negotiation.py  one negotiation, which mirrors what a client asks
ladder.py       how much of the protocol it is asked for, and when for less; pure
examined.py     what an INFO has shown of it, and need not be asked again; pure
allowance.py    how long all of that may take
listing.py      what LIST shows of it
warm.py         connections that nobody has asked for: ready for the next clients, or to see how it is
errors.py       why there is no link
news.py         what the log is told of how it is
mode.py         over how many connections it serves
coherence.py    whether several may be used
configured.py   what the upstreams of a configuration lead to, made once and kept through reloads
"""
