"""Tests of gateway.clients; the conversations are in tests/sessions."""
