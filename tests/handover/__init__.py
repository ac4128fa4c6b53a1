"""Tests of what goes from one process to another."""
