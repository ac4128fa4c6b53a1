"""How a running gateway is spoken to."""
