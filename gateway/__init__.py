"""nbd-gateway: stands between NBD clients and NBD servers, and speaks to each in its own dialect.

Where everything is; imports go down this list, never up:

    cli/         one file per verb: serve, demo, check, explain, probe, policies, ...
    app/         the gateway as a whole: built from a configuration, reloaded, switched
    web/         metrics, health, an API and a page for browsers over HTTP, in a process of its own
    upgrade/     a newer process takes this one's place, and no client notices
    inspect/     what looks and serves nobody: explain, probe, conform, what check looks for
    fleet/       several gateways that serve as one: who may serve a disk is decided by etcd
    workers/     several processes that serve as one: a supervisor, and workers with a hub each
    status/      what a running gateway is doing, and what waits for what
    admin/       how a running gateway is spoken to
    clients/     a client until it has opened an export
    sessions/    from then on: what it was promised, and how it lives on, is paused, led elsewhere
    links/       disks, and what leads sessions to them: links of their own, and links that act as one
    hub/         the data plane with its sockets: all sessions in one epoll, in one task
    upstream/    servers, the negotiation ladder, links, listings
    embedded/    NBD servers of our own: memory, file, and a scriptable legacy one
    handover/    clients that go from one process to another, with their sockets
    net/         sockets: listen, dial, drive a pure core from a socket; and processes that end with us
    tls/         credentials, contexts, who a peer is; no sockets
    tickets/     exports that are made while the gateway runs, kept on disk, and over at a time
    access/      who may reach what: rules, chains of policies, and where policies are found
    policy.py    the policy API: the one module that a policy imports (`policies`, and others' packages)
    bundle/      links that act as one: what is asked of which, and what becomes of it when one dies; pure
    scan/        what goes through a session, message by message; pure
    jobs/        commands that take several of the server's; pure
    losses/      what a server may lose of what it has acknowledged, and who is told; pure
    quirks/      one file per oddity of a peer, and how it is mended; pure
    protocol/    who may say what, when: both negotiations, offer(), legality; pure
    counts/      what has been done since the start, in numbers that only grow; pure
    trace/       bytes of a connection -> messages and words, for whoever looks on; pure
    log/         what is written while it runs: how much, how it looks, and by a thread that harms nobody
    identity.py  who a client is, whatever it proves it by; pure
    peer.py      whether the process at a link's other end can carry anything out any more; pure
    whole.py     files that are whole or not there
    clock.py     what time it is here
    there.py     what is not there, and what may not be looked at
    throttle.py  token buckets, shared fairly, and the gates before them; no tasks
    plural.py    numbers with their nouns
    wire/        bytes <-> values: options, requests, replies, chunks; pure
    config/      what users write (a leaf)
    uri.py       NBD URIs (a leaf)

A connection's life: accept -> protocol.server_role (their options) -> access.rules (may they, and with which
policies) -> upstream.negotiation (the same asked there) -> quirks -> access.chain (what policies make of it)
-> protocol.export.offer -> GO -> hub until the end. Words are proto.md's: a *client* connects to us, we
connect to an *upstream*; a *session* is a client connection after negotiation, a *link* an upstream one. A
*quirk* mends what a peer gets wrong; a *policy* is a restriction or change that an operator chooses.
"""

__version__ = "0.2.0"
