"""Commands of a client that take several of the server's: what they do, and what drives them. Pure.

jobs.py       what drives them: a job yields what it asks, and is sent what came of it
steps.py      what a job yields, and what it returns
job_timing.py  what a job tells whoever times it
translate.py  what they do, one generator for each command
extents.py    block status as proto.md wants it
locks.py      ranges that a read-modify-write has to itself
fences.py     ranges over which nobody writes, for an old write may come late

What a job asks is an `Ask` (`gateway.protocol.asks`), and goes over the session's own link (`gateway.scan`) or
over one of several (`gateway.bundle`).
"""
