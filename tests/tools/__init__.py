"""What tests of links that die are made with, beside the scripts of `make`.

cutter.py    a relay that cuts, holds and refuses connections
volatile.py  a server in this process whose cache a crash loses
oracle.py    what may be read, and what may be lost (pure)
kill_run.py  real servers killed with -9 under a verifying load: `python -m tests.tools.kill_run --help`
"""
