"""The speed of the gateway against its peers: `make bench`, or `python -m tests.bench --help`.

    rows.py       what is measured, with its floors and goals: a table
    judge.py      medians, ratios, verdicts; pure
    peers.py      how each contestant is started
    processes.py  children that end with us, and what memory and processor time they take
    client.py     a client of raw bytes, for what no tool does: sit still, and never read
    measure.py    one measurement of each kind of load
    run.py        rounds: every contestant in turn, again and again
    profiling.py  one row under cProfile
    report.py     the table, JSON and docs/performance.md; pure but for two writes
    chart.py      docs/performance-*.svg, one for each kind of processor
    machine.py    on what and with what it was measured
    floods.py     clients that ask for as much as a server takes of what costs it most
    scale.py      what a request and an opening cost where there is much of something: `make bench-scale`
    curves.py     of what there is how much there, and what the numbers say; pure
    scale_chart.py  docs/scale-*.svg, one for each curve
    workers.py    what several workers give and cost: `make bench-workers`
    worker_model.py  what they would give on larger machines, from what a request costs; pure
    counting.py   what it costs to count, in pairs with a gateway that counts nothing
    notice.py     what a client notices of those who look, of crowds and of attackers, in pairs
    pairs.py      what pairs differ by, and between what that lies; pure
    neighbours.py what clients of one shared connection cost each other, by hand

A load that is added later (TLS, reframed, fan-out, policies) is a row, and a contestant in peers.py
where it needs another server or client set-up.
"""
