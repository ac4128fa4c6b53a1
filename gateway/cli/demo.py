"""nbd-gateway demo: what the gateway is for, on a server that needs it."""


def demo() -> int:
    """Show a server with an old one's faults, direct and through the gateway; then serve it.

    Needs nothing but this program. Ctrl-C ends it.
    """
    import trio

    from gateway import app
    from gateway.cli import complain

    try:
        return trio.run(app.demo)
    except app.StartError as error:
        complain(str(error))
        return 1
