"""Disks, and what leads sessions to them: links of their own, and links that act as one, with their sockets and
tasks.

disk.py     which disk an export is, and what there is once for each: locks, fences, losses, shared links
fencing.py  how long writes wait for older ones that may come late
wire.py     the socket of one link of several, in the hub
trunk.py    a bundle with its sockets, and the tasks that make its links, and make them again
making.py   makes the links of a trunk
uplink.py   a session's way to its disk: a link of its own, or a share of a trunk
asking.py   what is asked over an uplink before a session is on it
shared.py   begins the trunks that clients share, or have alone
opening.py  what a client's questions are asked of, until it has opened an export
"""
