"""Policies: one short file each; the file's name is the policy's name."""
