"""Whole gateways in this process, with real sockets.

gateways.py   a gateway before an embedded server
houses.py     one that can be paused and switched
elsewhere.py  the servers that it is switched to
restarts.py   one whose server is killed, and comes back
forgetful.py  one whose server has a volatile cache
asking.py     what clients ask
placed.py     policies, put at an export
survivors.py  a session that lives on, without Trio
registers.py  schedules of sessions before one disk
matrix.py     every dialect of a server with every dialect of a client
"""
