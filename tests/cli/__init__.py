"""One file a verb.

programs.py  the gateway as a program, and one that looks at it
looking.py   a client of a gateway that asks, and then looks at it
"""
