"""Each policy by itself, and what all of them keep to.

harness.py   one policy, over a disk in memory
examples.py  the examples in their docstrings
"""
