"""Credentials, and who a peer is.

handshakes.py  two sides joined in memory, and the files that they load
"""
