"""Looks at servers, configurations and this machine, and serves nobody.

probe.py      what a server is, and what is wrong with it
instead.py    an export that a server does not have, and those that it lists
explain.py    what the gateway would do for one client that asks for one export
changes.py    what policies change of it, in words
report.py     what is found
needs.py      what `serve` will need of this machine and lacks
tickets.py    exports that were made at run time, as they are on the disk
fleet.py      what etcd knows of a fleet
footprint.py  where a gateway reads and writes, as far as its configuration tells
unit.py       units of systemd for a configuration
conform/      whether a server does what it says, tried out
"""
