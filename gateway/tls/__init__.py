"""TLS without sockets: who we are, whom we admit, and who a peer is.

errors.py       what goes wrong: with a file of ours, or with a peer
reading.py      files, bounded and refused in plain words
psk.py          pre-shared keys: psktool's file, and which user a client is
certificates.py the directory of PEM files that nbdkit, qemu and libnbd use
revoked.py      lists of what CAs have revoked, and who is on one
purpose.py      a server whose certificate is for clients alone
hello.py        whether a ClientHello offers a pre-shared key
credentials.py  the above -> SSL contexts, for both sides, and who is admitted by them
session.py      one session: how it begins, and who its peer is
identity.py     what a certificate or a key says of its owner
server_uri.py   what an nbds: URI says of how we reach a server
client_uri.py   an nbds: URI for a client of ours
keyring.py      all credentials of a configuration: loaded, exchanged, warned of
rotation.py     credentials that are exchanged while the gateway runs
pki.py          a certificate authority for trying things out, in a directory
issuing.py      its certificates, keys and lists, before they are written
"""
