"""Who may reach what.

installed.py  policies that are installed beside the gateway
"""
