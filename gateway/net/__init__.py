"""Sockets: where clients come from, how servers are reached, and how a pure core is driven.

listen.py         addresses that we listen on
socket_file.py    the file of a Unix socket: whose it is, and what a killed process leaves
inherited.py      those that whoever starts us listens on already
proxy.py          whom a load balancer speaks for
dial.py           servers that we connect to by address
command.py        servers that we start
keeping.py        starting what ends with us
keeper.py         the process that sees to it
hearing.py        what a server that we have started says on its standard error, as lines of our log
private.py        sockets that nobody else is to reach
processes.py      which process is at the other end, and whether it has ended
options.py        socket options, the same for both
drive.py          a negotiation (gateway.protocol) on a stream
secure.py         TLS over a connection that is negotiated on: a stream
secure_socket.py  the same for the hub: a non-blocking socket
privileges.py     who we are, once all is open that takes more rights
tally.py          says seldom what happens often
"""
