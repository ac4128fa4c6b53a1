"""Several gateways on several machines that serve as one: which of them may serve a disk is decided by etcd.

What decides it:

lease.py      how long a gateway may rely on its lease; pure
record.py     who may write to a disk, as etcd keeps it; pure
tenure.py     a gateway's time as the home of one disk: when it may begin, and whether it still may; pure

A gateway as one of a fleet:

member.py     which disk a client asks for, and who serves it
held.py       the lease that it holds: got, kept, and what is done when it cannot be kept
home.py       one disk whose home is here: its tenure, and the sockets of its links
guarded.py    a link's socket that looks before each batch whether it still may
taking.py     a disk is taken, cleared and given away at etcd
draining.py   the gateway is drained: its disks are given away in good order
tickets.py    exports that are made at run time, at all gateways of a fleet
terms.py      which of its certificates have ended, or soon will
office.py     what a member asks of the gateway around it

A client that came in at another gateway than his disk's home:

door.py       how he goes there
led.py        his way there, wherever the home is

Etcd:

keys.py       the names of keys in etcd, and what they say; pure
opening.py    the etcd of a configuration, with what it wants of us
etcd.py       leases, keys, transactions and changes of etcd, over its JSON gateway
answers.py    what etcd answers, read; pure
following.py  keys that are followed: all below a prefix, as etcd had them a moment ago

`DiskHome.serves` says whether a disk may be opened here. `GuardedSocket` asks before each batch whether it may
be sent to the disk's server. Both go by the tenure and the lease.

docs/fleet.md has what users are told of it, and what all this does not promise.
"""
