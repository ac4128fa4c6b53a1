"""A newer process of the gateway takes the place of an older one, and no client notices.

What happens, as tables:

steps.py      who does what, step by step, and what the death of either means: two tables; pure
homes.py      which of the two serves a disk: a table of who has been given what; pure

The process that was there:

older.py      it starts the newer one, hands over, and drains
sharing.py    its doors, while the newer one has them as well
draining.py   what it does for its clients, and for those of the newer one, until the last has left
giving.py     what it gives: disks, with their losses, and servers

The process that comes:

begin.py      what a process finds that was started for this
newer.py      it is given the doors, and serves beside the older one until that has ended
receiving.py  what it is given: disks, with their losses, and servers
beside.py     the clients that the older one has, as limits count them

Both:

office.py     what an upgrade asks of the gateway
asking.py     clients that were given to the other process, which has not said yet whose they are
errands.py    what one has the other do: an operator's verbs, and the begin of a ticket's use
doors.py      listening sockets on their way
children.py   servers of `command` on their way
tickets.py    exports that were made at run time, on their way
switched.py   where exports were switched, in words that both have in common

docs/upgrade.md has the theory, in pictures. What a client takes with it is in `gateway.handover`.
"""
