"""Several gateways that serve as one.

running.py  a fleet, as real processes
joined.py   members of a fleet without gateways around them
etcds.py    etcd, as real processes
model.py    two gateways, etcd and a server, and every order of what can happen to them
"""
