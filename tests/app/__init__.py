"""The gateway as a whole: reloads, switches, the demo.

houses.py  a gateway that is reloaded
managers.py  a stand-in for systemd
asking.py  a gateway that is asked over its control socket
"""
