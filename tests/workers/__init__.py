"""Tests of `gateway.workers`.

running.py    a gateway with several workers, before servers in the test's own process
registers.py  the register model, before clients of two workers
homeless/     what takes the homes away, to see whether a test notices
"""
