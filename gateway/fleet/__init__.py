"""Several gateways on several machines that serve as one: which of them may serve a disk is decided by etcd.

member.py   a gateway as one of a fleet: its lease, its disks, and where the homes of others are
door.py     how a client goes from the gateway where it came in to the home of its disk
led.py      a client's way to the home of its disk, wherever that is
guarded.py  a link's socket that looks before each batch whether it still may
keys.py     the names of keys in etcd, and what they say; pure
lease.py    how long a gateway may rely on its lease; pure
opening.py  the etcd of a configuration, with what it wants of us
etcd.py     leases, keys and transactions of etcd, over its JSON gateway
record.py   who may write to a disk, as etcd keeps it; pure
tenure.py   a gateway's time as the home of one disk: when it may begin, and whether it still may; pure

docs/fleet.md has what users are told of it, and what all this does not promise.
"""
