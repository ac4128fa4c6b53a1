"""A client until it has opened an export.

client.py    one client, from its first byte until its session begins, or until it has left
inquiry.py   what it asks of exports, of the rules, the upstream and the policies
homing.py    it is handed over, where another process serves what it asks for
presence.py  whether it is still there while an upstream is asked
"""
