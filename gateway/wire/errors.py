"""The one error of this package: the bytes are not a message of the protocol."""


class WireError(Exception):
    """A peer sent bytes that the protocol does not allow there, so we cannot stay in step with it.

    Catch it where the connection is owned: close the connection and log the text, which says what was
    expected, what came and where.
    """
