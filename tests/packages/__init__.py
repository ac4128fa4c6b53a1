"""What is handed out, in a Debian that has nothing else: `make test-packages`, as root; half an hour.

What they need of this machine is installed by `tests/tools/install-peers --for-packages`.

    roots.py     fresh Debians, by debootstrap, and what is run in them
    images.py    the image of deploy/, built without a registry
    engine.py    an engine for containers, in a network of its own
    libvirts.py  libvirt's daemon, and domains that are emulated
"""
