"""One client's life, and the data plane that it ends up in.

client.py   one client until it has opened an export, and when it leaves
promise.py  what it is promised of that export
transmit.py its transmission phase, from the task that waits for it
service.py  what all clients share
listing.py  what LIST shows
scan/       what goes through a session, message by message; pure
hub.py      the reactor: every session's two sockets in one epoll, in one task
lane.py     one direction of a session: receive once, scan, send once
session.py  two lanes, and how they end
"""
