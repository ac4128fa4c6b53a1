"""The data plane.

wires.py  a session between two socket pairs, without Trio
"""
