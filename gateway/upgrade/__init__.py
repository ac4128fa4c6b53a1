"""A newer process of the gateway takes the place of an older one, and no client notices.

steps.py   who does what, step by step, and what the death of either means: two tables; pure
homes.py   which of the two serves a disk: a table of who has been given what; pure
older.py   the process that was there: it starts the newer one, hands over, and drains
draining.py  what it does for its clients, and for those of the newer one, until the last has left
asking.py  clients that were given to the other process, which has not said yet whose they are
newer.py   the process that comes: it is given the doors, and serves beside the older one until that has ended
errands.py what one has the other do: an operator's verbs, and the begin of a ticket's use
switched.py  where exports were switched, in words that both have in common
tickets.py exports that were made at run time, on their way
giving.py  what the older one gives: disks, with their losses, and servers
receiving.py  the same, as the newer one is given it
host.py    what it needs of the gateway
begin.py   what a process finds that was started for this
doors.py   listening sockets on their way
sharing.py the older one's doors, while the newer one has them as well
beside.py  the clients that the other process has, as limits count them
children.py  servers of `command` on their way

docs/upgrade.md has the theory, in pictures. What a client takes with it is in `gateway.handover`.
"""
