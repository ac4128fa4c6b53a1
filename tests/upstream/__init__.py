"""Servers, and how we negotiate with them.

servers.py  servers that no configuration names
options.py  what a server was sent, read again
taps.py     what goes over a connection
"""
