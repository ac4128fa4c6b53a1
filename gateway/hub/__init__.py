"""The data plane with its sockets: all sessions in one epoll, in one task.

hub.py      the reactor: whose socket is ready, and how it waits for more
crowd.py    the events it waits for, and what sessions tell it of how to wait
rounds.py   how it waits for more: by polling, or in the kernel; pure
pace.py     the same in numbers, for whoever looks on
waker.py    what wakes it, and by which one sees that it goes round
turns.py    whose turn it is when there is not time for all
hold_ups.py clients that hold up others
lane.py     one direction of a session: receive once, scan, send once
lanes.py    both lanes of a session, and what passes between them
pump.py     who does the usual step of a session: `_pump.c`, compiled, or Python
pumped.py   lanes with a pump, and what is done where that has stopped
tapped.py   sockets with a tap, by which somebody looks on
ends.py     what becomes of a session when something happens to one of its sides: a table; pure
ending.py   two lanes that come to an end, as that table says
timed.py    how long some of a session's requests take
session.py  what the hub and others have a session do: begin, go on, hold, take another link
"""
