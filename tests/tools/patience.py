"""How long a test waits for what has to come."""

HANG_SECONDS = 250.0
"""For what takes an instant where nothing else is done. No machine is so busy that it takes as long: it hangs.
Less than pytest's own limit, so that it is said what was waited for."""
