"""Upstreams: how one is reached, what is negotiated with it, and the link that comes of it.

server.py       one upstream of the configuration: its address, what is known of it, its list of exports
maker.py        makes them, for the configuration, reload and switch; and whose disks an address leads to
negotiation.py  one negotiation, which mirrors what a client asks, and the ladder for old servers
"""
