"""Several processes that serve as one: a supervisor, which relays nothing, and workers with a hub each.

Which worker has which disk:

number.py      how many workers there are
rendezvous.py  which of them a key belongs to: a hash; pure
homes.py       which disks have a home, and why: a function of the configuration

The supervisor:

worker.py      one worker, as the supervisor knows it
crew.py        all of them: started, briefed, and started again
passing.py     clients on their way between them
lender.py      what they borrow:
ledger.py      - places of numbers that hold for all of them together: what is lent to which; pure
rates.py       - slices of rates that hold for all of them together; pure

A worker:

member.py      as it knows itself: which homes are here, and what the supervisor says
office.py      what it asks of the gateway that it is
doors.py       the listening sockets that it is given, and who is there
places.py      how many clients each listener has, in memory that all share
handing.py     clients that go from it to another one, or come from there
borrower.py    what it borrows: places for its sessions,
loans.py       and what its buckets hold

What operators ask of all of them:

asking.py      how workers are asked
orders.py      what an operator has set, and workers that come later have as well
desk.py        what is asked of the gateway as a whole, answered for all workers
front.py       what the child that speaks HTTP asks, answered for all workers
merged.py      what several workers answer, as one answer; pure
past.py        what workers have done that have died; pure

The supervisor itself is `gateway.app.supervise`; a worker begins in `gateway.app.worker`. Another configuration
is read by the supervisor (`gateway.app.reload_all`), which says it to each worker (`member`). docs/workers.md
has what users are told of it.
"""
