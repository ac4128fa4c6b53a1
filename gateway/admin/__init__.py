"""How a running gateway is spoken to by those who run it.

control.py    the control socket: which verbs there are, and who may say them
listening.py  to those verbs that go on telling, after their answer
"""
