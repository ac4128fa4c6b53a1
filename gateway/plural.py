"""Numbers with what they are of, as people say it: "1 session", "2 sessions"."""


def plural(count: int, one: str, many: str = "") -> str:
    """Give a number and its noun. `one` is said of 1, `many` of all others (none: `one` with an s); a verb that
    goes with the noun is in both.
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"
