"""nbd-gateway: stands between NBD clients and NBD servers, and speaks to each in its own dialect.

Where everything is; imports go down this list, never up:

    cli/         one file per verb: serve, demo, check, explain, probe, policies, ...
    demo.py, explain.py, probe.py, conform/   what those verbs do; needs.py, what check looks for
    app.py       composition root: builds everything from a configuration
    pidfile.py   our number in a file, as long as we serve
    reload.py    another configuration while the gateway runs: all of it or nothing
    switching.py the verbs that pause, resume and switch exports
    admin/       how a running gateway is spoken to
    upstreams.py what the upstreams of a configuration lead to, kept through reloads
    keyring.py   all TLS credentials of a configuration, and their exchange
    embedded/    NBD servers of our own: memory, file, and a scriptable legacy one
    relay/       one client's life, and the data plane: scan (pure), lanes, hub; bundle, of links
    upstream/    targets, the negotiation ladder, links, listings
    net/         sockets: listen, dial, drive a pure core from a socket; and processes that end with us
    tls/         credentials, contexts, who a peer is; no sockets
    access/      who may reach what: rules, chains of policies, and where policies are found
    policy.py    the policy API: the one module that a policy imports (`policies`, and others' packages)
    quirks/      one file per oddity of a peer, and how it is mended; pure
    protocol/    who may say what, when: both negotiations, offer(), legality; pure
    log/         what is written while it runs: how much, how it looks, and by a thread that harms nobody
    whole.py     files that are whole or not there
    identity.py  who a client is, whatever it proves it by; pure
    peer.py      whether the process at a link's other end can carry anything out any more; pure
    throttle.py  token buckets, shared fairly, and the gates before them; no tasks
    wire/        bytes <-> values: options, requests, replies, chunks; pure
    config/      what users write (a leaf), and uri.py: NBD URIs (a leaf)

A connection's life: accept -> protocol.server (their options) -> access.rules (may they, and with which
policies) -> upstream.negotiation (the same asked there) -> quirks -> access.chain (what policies make of it)
-> protocol.export.offer -> GO -> relay.hub until the end. Words are proto.md's: a *client* connects to us, we
connect to an *upstream*; a *session* is a client connection after negotiation, a *link* an upstream one. A
*quirk* mends what a peer gets wrong; a *policy* is a restriction or change that an operator chooses.
"""

__version__ = "0.1.0"
