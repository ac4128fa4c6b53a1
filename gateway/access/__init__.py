"""Who may reach what, and with which policies."""
