"""What is handed out, in a Debian that has nothing else: `make test-packages`, as root; about five minutes.

roots.py  fresh Debians, by debootstrap, and what is run in them
"""
