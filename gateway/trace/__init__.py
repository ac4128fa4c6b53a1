"""What is said over a connection, message by message, for people who look on; pure.

message.py  one message, and the direction of a connection that it was seen in
asked.py    the requests of a connection that have no whole reply yet
decode.py   bytes of a direction -> messages: requests, and replies in all three framings
words.py    a message in words
backlog.py  what waits for a reader, as far as there is room
pcapng.py   a capture for Wireshark and tshark

The scanners of the data plane (`gateway.scan`) judge what they see, and end a connection over what is not
allowed. Whoever looks on judges nothing: what is no message is told as what it is. A decoder never raises. It
keeps the header of a message and counts the data behind it, so that it costs next to nothing how long that is.
"""
