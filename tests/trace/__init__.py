"""What is said over a connection, for people who look on.

conversations.py  a decoder in each direction, and all messages of every framing
captures.py       a reader of pcapng, which knows nothing of our writer
"""
