"""Tests of gateway.log.

sites.py  every call that logs, as the source says it
"""
