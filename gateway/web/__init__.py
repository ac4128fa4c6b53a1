"""HTTP for whoever runs the gateway: metrics, health, an API, and a page for browsers. A process of its own.

Whoever speaks HTTP is busy for long at a time: parsing headers, shaking hands over TLS, writing a megabyte of
metrics, importing a quarter of a second's worth of libraries. The hub has one thread, and no session there may
wait a millisecond for that. So a child process does it. It inherits the listening sockets from the gateway, and
asks it what the command line asks, by the same verbs, over a control socket of its own
(`gateway.admin.control`), where questions are answered in steps that no session notices. Browsers by the
thousand that never read, or send bodies without end, are the child's trouble; if it dies of them, another one
is begun (`gateway.app.web`).

settings.py    what the gateway tells the child
main.py        the child: from its settings to its end
serving.py     connections, their TLS and their bounds, around hypercorn's HTTP/1.1
doors.py       who comes, and what that lets them do; hosts and origins; pure
tokens.py      the file of tokens
needs.py       what the child will need and is not there
guard.py       each request is held to that, before anybody reads it
refusals.py    who is refused, told to the log at once, and then seldom
gateway.py     what is asked of the gateway: no more at a time than it bears, and once for all who ask the same
metrics.py     the counts as Prometheus has them: one table
exposition.py  how they are written for it
health.py      whether it lives, and whether it is ready
verbs.py       which verbs HTTP offers, with what arguments: one table
openapi.py     the same as an OpenAPI document
watch.py       what changes, as server-sent events; and the last quarter of an hour
app.py         all of it, by path

Beside these, `static` has the page: HTML, style and scripts as browsers get them, without a step in between.
"""
