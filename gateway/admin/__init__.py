"""How a running gateway is spoken to by those who run it."""
