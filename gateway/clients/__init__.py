"""A client until it has opened an export.

client.py       one client, from the moment it has connected until it has gone
negotiating.py  its negotiation, option by option, until its session begins
inquiry.py      what it asks of exports, of the rules, the upstream and the policies
contexts.py     what it asks of meta contexts
homing.py       it is handed over, or led, where another process or gateway serves what it asks for
presence.py     whether it is still there while an upstream is asked
"""
