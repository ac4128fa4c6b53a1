"""One client's life, and the data plane that it ends up in.

client.py   one client until it has opened an export, and when it leaves
inquiry.py  what it asks of exports, of the rules, the upstream and the policies
reading.py  policies that look at the disk before it is described, and the READs that they make
promise.py  what it is promised of an export, and told; asked of nobody, so that `explain` can ask the same
transmit.py its transmission phase, from the task that waits for it
hooks.py    commands that go through hooks of policies: a task for each
observing.py  what policies that are only observed would have done, told to the log
service.py  what all clients share
disk.py     which disk an export is, and what there is once for each: locks, losses, shared links
losses.py   what a disk may have lost, and which sessions are told; pure
unflushed.py  what was acknowledged, and not flushed since; pure
witnesses.py  whether the disk that is found after a reconnect is the one that was left; pure
untold.py   what disks have lost and not everybody was told of, in words for an operator
meant.py    which exports an operator means: by a name, a pattern, or all of a server
pausing.py  exports that are paused, resumed and switched: what is asked for, and when it ends by itself
settling.py waiting until it is known what others have lost, before a session begins
holding.py  sessions that begin nothing, and what they have written made durable
going_over.py  sessions that go on over other links, opened and compared before
fitting.py  whether an export that is opened elsewhere keeps what was promised; pure
fencing.py  how long writes wait for older ones that may come late
surviving.py  a session with a link of its own lives on when that dies
upkeep.py   what is done for upstreams while no client asks
listing.py  what LIST shows
scan/       what goes through a session, message by message; pure
bundle/     links that act as one: several for a client, one for many, the next one when one dies
hub.py      the reactor: every session's two sockets in one epoll, in one task
turns.py    whose turn it is in the hub, where there is not time for all
crowd.py    what the hub waits for, and how
lane.py     one direction of a session: receive once, scan, send once
session.py  two lanes, and how they end
"""
