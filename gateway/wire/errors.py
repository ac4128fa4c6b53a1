"""The errors of this package: the bytes are no message of the protocol, or one with a bad string in it."""


class WireError(Exception):
    """A peer sent bytes that the protocol does not allow there, so we cannot stay in step with it.

    Catch it where the connection is owned: close the connection and log the text, which says what was
    expected, what came and where.
    """


class NoString(WireError):
    """What should be a string is none (proto.md: UTF-8, no NUL, at most 4,096 bytes). The message has come
    whole, so a caller that can do without the string may go on.
    """
