"""Commands that take several of the server's."""
