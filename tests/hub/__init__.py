"""The data plane.

wires.py  a session between two socket pairs, without Trio
races.py  two sessions that are told the same, with the compiled pump and without
"""
