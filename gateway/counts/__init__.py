"""What has been done since the gateway started, in numbers that only grow. Pure.

totals.py   sessions, requests, bytes and errors, by export
seconds.py  how long something took, each time: histograms

Whoever wants to know reads the same numbers: the verbs of the control socket, and the log when a session ends.
A session counts for itself while it runs (`Traffic.asked`, `Traffic.errors`), once a batch; when it ends, its
numbers are added to its export's. So nothing is counted twice, and nothing is shared by what runs at a time.
"""
