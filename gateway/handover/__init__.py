"""Clients that go from one process of the gateway to another, with their sockets.

message.py  what one process tells another, as bytes: a table of kinds; pure
homes.py    what a negotiation needs to know of homes
given.py    a client on its way, with all that it was asked and told; pure
channel.py  the socket between the two, which carries descriptors as well
relay.py    a client that has to stay where its TLS is: its bytes, over a socket pair

A disk is served by one process at a time, its *home* (`gateway.links.disk` says what a disk is). Which process
that is, others decide: `gateway.upgrade`, while an older process has clients still. A client goes home before
any upstream was asked for it, at the first option that names an export. What goes along is its socket, the
flags of its handshake, the option that was not answered, and what came behind it. The rules, the policies and
the negotiation are those of its home, and nothing of these is written down.
"""
