"""Several gateways on several machines that serve as one: which of them may serve a disk is decided by etcd.

lease.py   how long a gateway may rely on its lease; pure
etcd.py    leases, keys and transactions of etcd, over its JSON gateway
record.py  who may write to a disk, as etcd keeps it; pure
tenure.py  a gateway's time as the home of one disk: when it may begin, and whether it still may; pure

docs/fleet.md has what users are told of it, and what all this does not promise.
"""
