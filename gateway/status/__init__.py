"""What a running gateway is doing: who is there, what waits for what, and what was done.

waits.py    what a session waits for, in one word and in a sentence
stuck.py    sessions and servers of which nothing is heard for too long: a line in the log, and one at the end
pages.py    what goes into one answer of many, and in which order
shown.py    the state of the gateway, its sessions, exports and upstreams, as names and numbers
telling.py  what was done with each export, for metrics
verbs.py    the verbs of the control socket that show it, and those that end sessions and stop listening
dump.py     the same as lines of the log, when a signal asks for it

Nothing here takes long at a time: a gateway may have ten thousand sessions, and none of them may notice that
somebody looks.
"""
