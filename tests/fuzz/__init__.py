"""Garbage for everything that reads bytes of others.

target.py        what a target is, and what is asked of each
targets.py       the table of them
negotiations.py, scanners.py, onlookers.py, texts.py  the targets
pump.py          one more: races of the compiled pump and Python (`tests.hub.races`), chosen by an input
__main__.py      inputs by chance: `python -m tests.fuzz [--seconds N]`, with schedules of whole sessions before
                 one disk (`tests.sessions.registers`)
by_coverage.py   inputs by coverage: `make fuzz-coverage`
atheris_main.py  the process that does it
instrumented.py  the pump that counts what is reached of its C code, for its target
corpus/          one directory a target: what reaches each piece of code, and what was found and mended

What a reader may raise at bytes of others is documented; the `except` clauses of the targets are that list, and
anything else is a finding.
"""
