"""Several gateways that serve as one.

model.py  two gateways, etcd and a server, and every order of what can happen to them
"""
