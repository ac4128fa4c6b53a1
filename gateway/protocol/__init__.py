"""Who may say what, when: the two negotiations, what is offered, which commands are legal.

Sans-IO: these modules take bytes and values and give bytes and values. They have no socket, clock or log,
so a conversation in a test is a list of bytes.

    server_role.py   we are the server of a client
    client_role.py   we are the client of an upstream
    introduction.py  what one gateway says to another
    export.py        what an upstream has, what we offer of it, and offer(), which decides
    commands.py      which commands a session may send, and what is answered when it may not
    table.py         what restricts a command beyond that: policies that restrict compile into it
    asks.py          what we ask a server by ourselves, as a value, and what it answers
    errors.py        refusals and hang-ups, named by what the catcher does next
"""
