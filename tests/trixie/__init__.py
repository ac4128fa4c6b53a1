"""Peers newer than Debian 12's, from a Debian 13 root: `make test-trixie`.

What they are for is extended headers, which libnbd 1.22 and qemu 10 ask for and qemu-nbd 10 has. Each
test also runs without the gateway, which shows that the test is right.

    root.py  programs of the Debian 13 root
"""
