"""The gateway before and behind the real programs.

servers.py    servers
clients.py    clients
rawclient.py  a client that no library would be
gateways.py   the gateway, or what stands in for it to show that a test is right
upgraded.py   the gateway, while newer processes take its place
bundles.py    how many connections there are, and what comes over them
loads.py      loads that run until something has been seen
processes.py  programs, started and ended
probing.py    how a server is probed
versions.py   which version of a real program is here
seen.py       what was seen of programs, as tests
"""
