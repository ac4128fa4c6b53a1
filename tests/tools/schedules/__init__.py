"""Schedules of whole gateways, held to `tests.tools.oracle`: one seed is one of them.

A gateway is made from a configuration, with real sockets, before a server with a volatile cache, in one process
and on a clock that jumps. Up to four clients ask for the same few blocks, several commands at a time, leave,
vanish and come back. Meanwhile the server is killed, goes in good order, ends and is started, fails FLUSHes,
answers late or not at all; connections are cut, or say nothing; operators pause, resume and switch the export,
and have newer gateways take the place of older ones, which end their sessions or not. In the end everything has
to be answered, and everybody, a newcomer among them, FLUSHes and reads everything.

    geometry.py   the blocks that a schedule is about
    settings.py   what the gateway and the server are like
    steps.py      what happens, as a list
    world.py      the server, and all that befalls it
    house.py      the gateways
    clients.py    who asks
    run.py        carries a list of steps out
    shrink.py     makes a list that fails shorter

Where time matters it is the clock's, and everything that is left to chance comes from the seed: Trio's order of
tasks as well. Sets of objects go by their addresses, so that a seed may in rare cases differ between machines.

`python -m tests.tools.schedules SEED` shows one; `python -m tests.tools.soak` goes on with new ones.
"""
