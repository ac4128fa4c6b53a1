"""The gateway as a whole: reloads, switches, the demo.

houses.py  a gateway that is reloaded
asking.py  a gateway that is asked over its control socket
"""
