"""What goes through a session.

peers.py  both ends of a session as plain code
"""
