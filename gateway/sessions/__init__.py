"""Sessions: clients that have opened an export, from GO to their end.

service.py    what all clients share
opened.py     an export that a client has opened: where it is, and what was promised of it
promise.py    what a client is promised of an export, and told; `explain` asks the same
reading.py    policies that look at the disk before it is described, and the READs that they make
seat.py       how a session is put on its uplink: the first, another, its own again
transmit.py   a transmission phase, from the task that waits for it
hooks.py      commands that go through hooks of policies: a task for each
observing.py  what policies that are only observed would have done, told to the log
surviving.py  a session with a link of its own lives on when that dies
settling.py   waiting until we know what others have lost, before a session begins
untold.py     what disks have lost and not everybody was told of, in words for an operator
meant.py      which exports an operator means: by a name, a pattern, or all of a server
pausing.py    exports that are paused, resumed and switched: what is asked for, and when it ends by itself
holders.py    who has asked for which pauses
comparing.py  what an export is where it is to be, compared with what it is
reconnecting.py  sessions of paused exports that have lost their links get others
holding.py    sessions that begin nothing, and what they have written made durable
going_over.py sessions that go on over other links, opened and compared before
fitting.py    whether an export that is opened elsewhere keeps what was promised; pure
upkeep.py     what is done for upstreams while no client asks
"""
