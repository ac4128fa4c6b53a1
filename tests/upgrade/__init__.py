"""Tests of upgrades: their tables, and real gateways that take each other's place."""
