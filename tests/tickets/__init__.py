"""Tickets.

clocks.py  two clocks that a test sets
"""
