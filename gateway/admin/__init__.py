"""How a running gateway is spoken to by those who run it.

control.py    the control socket: what is said there, and the end that is the gateway's
pieces.py     long lists in answers, as JSON piece by piece
asking.py     the other end: to have something done, and to have its answer
listening.py  to those verbs that go on telling, after their answer
"""
