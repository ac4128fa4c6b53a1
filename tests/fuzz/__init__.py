"""Random and mutated bytes at everything that reads a peer: `python -m tests.fuzz [--seconds N]`.

`targets` has one function for each reader, with the messages that its input is mutated from. What a reader
may raise at bytes from a peer is documented; the `except` clauses of the targets are that list, and anything
else is a finding. Beside them, schedules of whole sessions before one disk: `tests.relay.registers`.
"""
