"""Several processes that serve as one: a supervisor, and workers with a hub each.

rendezvous.py  which worker a key belongs to: a hash; pure
number.py      how many there are
homes.py       which disks have a home, and why: a function of the configuration
"""
