"""Disks, and what leads sessions to them."""
