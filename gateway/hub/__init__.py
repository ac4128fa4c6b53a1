"""The data plane with its sockets: all sessions in one epoll, in one task.

hub.py      the reactor: whose socket is ready, and how it waits for more
crowd.py    what it waits for, and what those that it serves tell it of how to wait
turns.py    whose turn it is where there is not time for all
lane.py     one direction of a session: receive once, scan, send once
lanes.py    both of them, and what passes between them
ends.py     what becomes of a session when something happens to one of its sides: a table; pure
ending.py   two lanes that come to an end, as that table says
session.py  what the hub and others have a session do: begin, go on, hold, take another link
"""
