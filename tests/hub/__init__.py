"""The data plane.

wires.py     a session between two socket pairs, without Trio
races.py     two sessions that are told the same, with the compiled pump and without
checks.py    what an example of a check of the pump's is made of; what the pump and the scanners ask
examples.py  one for each check
"""
