"""Sockets and processes.

children.py  processes, and whether they live
forger.py    the far side of a TLS connection, by hand
"""
