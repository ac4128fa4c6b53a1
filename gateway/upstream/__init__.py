"""Upstreams: how one is reached, what is negotiated with it, and the link that comes of it.

server.py       one upstream of the configuration: its address, what is known of it, its list of exports
maker.py        makes them, for the configuration, reload and switch; and whose disks an address leads to
places.py       which of its addresses is connected to next, and when; pure
negotiation.py  one negotiation, which mirrors what a client asks
ladder.py       how much of the protocol it is asked for, and when for less; pure
examined.py     what an INFO has shown of it, and need not be asked again; pure
allowance.py    how long all of that may take
listing.py      what LIST shows of it
warm.py         connections that nobody has asked for: ready for the next clients, or to see how it is
mode.py         over how many connections it serves
coherence.py    whether several may be used
configured.py   what the upstreams of a configuration lead to, made once and kept through reloads
"""
