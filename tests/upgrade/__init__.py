"""Tests of upgrades: their tables, and real gateways that take each other's place.

gateways.py  gateways in this process that take each other's place
mortal/    has a process die at a certain point of one
"""
