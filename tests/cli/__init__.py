"""One file a verb.

programs.py  the gateway as a program, and one that looks at it
"""
