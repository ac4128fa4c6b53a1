"""What tests of links that die are made with, beside the scripts of `make`.

cutter.py       a relay that cuts, holds and refuses connections
volatile.py     a server in this process whose cache a crash loses
defaults.py     an upstream of which the configuration says nothing, and what a test would have otherwise
oracle.py       what may be read, and what may be lost; pure
history.py      what the oracle is told
inversions.py   values that come back after newer ones were read
stamps.py       what is written: which write it was, and where it belongs
schedules/      whole gateways, on a clock that jumps
shares.py       how much of a long row of schedules is run each time
soak.py         new schedules until the time is over: `make soak`
kill_run.py     real servers killed with -9 under a verifying load: `python -m tests.tools.kill_run --help`
kill_plan.py    what such a run does, and how it went
victims.py      the servers that are killed
load.py         its clients, and what they know
findings.py     what any run has counted, and found wrong
restart_run.py  a real server restarted while the gateway negotiates with it
reconnect_run.py  clients that come and go for minutes, and what each process of the gateway has left of them
fleet_world.py  a whole fleet, and a server that knows which gateway each of its connections is from
fleet_run.py    faults and drains under verifying load: `python -m tests.tools.fleet_run --help`
zombie_run.py   a home that is stopped where no lease can help, again and again
stopping/       what stops it there
ticket_run.py   how soon a ticket of a fleet serves at another gateway
counting/       what has the processes count their tasks and objects
build_pump.py   the compiled pump with other flags than in a wheel: the sanitisers, counters of its edges
forbidden.py    a directory that may not be entered, also for root
patience.py     how long a test waits for what has to come
"""
