"""The gateway as a whole: what is made of a configuration, and how it is exchanged and led elsewhere.

From its start to its end:

options.py          what concerns one run rather than what it serves
run.py              the composition root: builds everything from a configuration, runs it, and ends it
arrivals.py         clients from when they are accepted until they have gone, and how they are counted
signals.py          what each signal has the gateway do
supervise.py        what is one for several workers
in_force.py         what they serve, and are told
reload_all.py       another configuration for all of them, or none
worker.py           where a worker begins
standing.py         what is in force, and who is here
doors.py            where clients and commands are taken, and until when
socket_files.py     files of Unix sockets that somebody has removed under us
becoming.py         whom it becomes, once all is open that takes more rights
descriptors.py      how many files we may have open
pidfile.py          our number in a file, as long as we serve
manager.py          what systemd is told of us, and by what it sees that we are alive
command.py          what a gateway is there for by `--run`
let_in_nowhere.py   clients that are let in nowhere
lacking.py          what the first client will need and is not there, said before he comes
draining.py         how clients are let go: those of a listener, or all, because the gateway ends
fleet.py            the gateway as one of a fleet, where it is one
fleet_disks.py      its disks, as the fleet asks for them
farewell.py         the end in good order, step by step

What it is asked while it runs:

asked.py            what was asked over the control socket, in the log
overview.py         what an operator is shown of listeners and certificates
source.py           where the configuration came from, and how it is read again
reload.py           another configuration while the gateway runs: all of it or nothing
switching.py        the verbs that pause, resume and switch exports, and show what they have lost
ticketing.py        exports that are made at run time: how their book is opened and exchanged
ticket_verbs.py     the verbs that change it
tracing.py          the verb that has somebody look on
upgrading.py        the verb by which a newer process takes this one's place
in_both.py          what is paused, resumed and switched while two processes serve
web.py              the child that speaks HTTP: it has its sockets and its answers from us

To try it out:

demo.py             a gateway before a server with qemu 3.0.0's faults, looked at from both sides
demo_work.py        clients at work, for the demo
"""
