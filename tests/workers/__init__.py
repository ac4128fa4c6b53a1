"""Tests of `gateway.workers`."""
