"""NBD servers of our own.

peers.py          a client that says exactly what it is told to; every test of sessions has it
personalities.py  what other servers are like
"""
