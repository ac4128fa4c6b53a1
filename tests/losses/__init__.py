"""What a server may lose, and who is told.

model.py  servers that forget, and every order of events
judge.py  the rule once more, for the model
"""
