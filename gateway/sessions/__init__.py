"""Sessions: clients that have opened an export, from GO to their end.

A session's life:

service.py       what all clients share
opened.py        an export that a client has opened: where it is, and what was promised of it
promise.py       what a client is promised of an export, and told; `explain` asks the same
reading.py       policies that look at the disk before it is described, and the READs that they make
seat.py          how a session is put on its uplink: the first, another, its own again
transmit.py      a transmission phase, from the task that waits for it
hooks.py         commands that go through hooks of policies: a task for each
observing.py     what policies that are only observed would have done, told to the log

When links die:

surviving.py     a session with a link of its own lives on when that dies
led.py           sessions whose server is another gateway of a fleet, the home of their disk
settling.py      waiting until we know what others have lost, before a session begins

Exports that are paused, resumed and switched:

pausing.py       what is asked for, and when it ends by itself
holders.py       who has asked for which pauses
holding.py       sessions that begin nothing, and what they have written made durable
comparing.py     what an export is where it is to be, compared with what it is
whereabouts.py   where exports are, where a switch leads them, and what they leave there
going_over.py    sessions that go on over other links, opened and compared before
fitting.py       whether an export that is opened elsewhere keeps what was promised; pure
reconnecting.py  sessions of paused exports that have lost their links get others

For operators, and while nobody asks:

counted.py       what a session's client has asked for, in words
meant.py         which exports an operator means: by a name, a pattern, or all of a server
untold.py        what disks have lost and not everybody was told of, in words for an operator
tracing.py       traces: whoever runs the gateway looks on while sessions talk
taps.py          by which they do so, on each connection
upkeep.py        what is done for upstreams while no client asks
"""
