"""What is handed out, in a Debian that has nothing else: `make test-packages`, as root; a quarter of an hour.

roots.py  fresh Debians, by debootstrap, and what is run in them
"""
