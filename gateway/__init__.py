"""nbd-gateway: stands between NBD clients and NBD servers, and speaks to each in its own dialect.

Where everything is; imports go down this list, never up:

    cli/         one file per verb: serve, demo, check, explain, probe, policies, ...
    demo.py, explain.py, probe.py, conform/   what those verbs do
    app.py       composition root: builds everything from a configuration
    keyring.py   all TLS credentials of a configuration, and their exchange
    embedded/    NBD servers of our own: memory, file, and a scriptable legacy one
    relay/       one client's life, and the data plane: scan (pure), lanes, hub
    upstream/    targets, the negotiation ladder, links, listings
    net/         sockets: listen, dial, drive a pure core from a socket
    tls/         credentials, contexts, who a peer is; no sockets
    quirks/      one file per oddity of a peer, and how it is mended; pure
    protocol/    who may say what, when: both negotiations, offer(), legality; pure
    identity.py  who a client is, whatever it proves it by; pure
    wire/        bytes <-> values: options, requests, replies, chunks; pure
    throttle.py  token buckets, shared fairly, and the gates before them; no tasks
    config/      what users write (a leaf), and uri.py: NBD URIs (a leaf)

A connection's life: accept -> protocol.server (their options) -> relay.client (which export) ->
upstream.negotiation (the same asked there) -> quirks -> protocol.offer -> GO -> relay.hub until the
end. Words are proto.md's: a *client* connects to us, we connect to an *upstream*; a *session* is a
client connection after negotiation, a *link* an upstream one.
"""

__version__ = "0.1.0"
