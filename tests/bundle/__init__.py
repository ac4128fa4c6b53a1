"""Links that act as one.

model.py   schedules of sessions over one bundle, held to what a disk means
server.py  its server, which forgets what is not flushed
"""
