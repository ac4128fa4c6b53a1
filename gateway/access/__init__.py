"""Who may reach what, and with which policies.

who.py      does a rule mean this client?
rules.py    which rule is it, and which policies come with it
chain.py    what those policies add up to: one view, one table, and stages for what takes hooks
loading.py  finds policies in installed packages
named.py    the same, for whoever reads what users write
"""
