"""Tickets: exports that are made while the gateway runs, kept on disk, and over at a time or after a use.

store.py  one file for each, whole or not there, whatever happens to the machine
kept.py   a ticket and how it stands: until when, who uses it; and the policy by which it says so itself
book.py   all that are in force: made, renewed, removed, over
clock.py  two clocks, of which none can be set back

A name leads to a ticket by `Config.route`, as any name does: the configuration in force looks into the book's
mapping of names. `Access` finds its policies there. All else (sessions, pauses, switches, losses) sees an
export like others. That a ticket is over is seen by whoever asks for it in the same moment, because its first
policy says so; its sessions are told by the book, which looks when something is due.
"""
