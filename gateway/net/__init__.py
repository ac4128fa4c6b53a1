"""Sockets: where clients come from, how servers are reached, and how a pure core is driven.

listen.py   addresses that we listen on
dial.py     servers that we connect to, by address or by command
processes.py  which process is at the other end, and whether it has ended
options.py  socket options, the same for both
proxy.py    whom a load balancer speaks for
drive.py    a negotiation (gateway.protocol) on a stream
"""
