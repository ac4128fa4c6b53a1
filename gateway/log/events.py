"""All that is logged: each event's name, its levels, when it comes, its fields, and what a person does then.

Nothing of the gateway reads this table while it serves. docs/log.md is made from it (`python -m tests.events`),
and `tests/log/test_events.py` holds it to the calls that log: an event that is not here is not logged, nor is
one with another level or another field; and what is here is logged somewhere. So a new event is a call of the
logger and an `_event` here.

A warning is what a person should look at in the morning, an error is what should wake one. Names are searched
for and counted by, so they stay as they are.

This module is longer than other modules: it is one table.
"""

from __future__ import annotations

from typing import NamedTuple

DEBUG, INFO, WARNING, ERROR = "debug", "info", "warning", "error"

Fields = tuple[tuple[str, str], ...]
"""What a line says beside its event: the name of each field, and what it means."""


class Logged(NamedTuple):
    """An event of the log."""

    name: str
    """The text of the event, as it is logged. What stands in braces in it differs from time to time."""
    levels: tuple[str, ...]
    when: str
    """When it comes, in whole sentences. If it has several levels, this says which comes when."""
    do: str
    """What a person does about it; empty if nothing needs to be done."""
    fields: Fields
    """What its call gives. No line needs to have all of them."""


class Chapter(NamedTuple):
    """Events of the same things."""

    title: str
    carries: Fields
    """What all its lines have beside their own fields: the logger is bound to it."""
    events: tuple[Logged, ...]
    sometimes: Fields = ()
    """What those of its lines have as well that are about one client's own connection."""


def _event(
    name: str, level: str | tuple[str, ...], when: str, do: str = "", /, **fields: str
) -> Logged:
    levels = (level,) if isinstance(level, str) else level
    return Logged(name, levels, when, do, tuple(fields.items()))


# --- What fields mean that many events have

_UPSTREAM = "the name of the upstream"
_EXPORT = "the name of the export, as clients know it"
_THERE = "the name that the export has at the upstream"
_WHY = "the reason, in a sentence"
_WORKER = "its number, from 0 on"
_SESSIONS = "how many sessions it concerns"
_SERVER = "where it is now: the name of an upstream, or the URI that was given"
_COUNT = "how often that was since the last such line"
_TRACEBACK = "a traceback, for whoever mends it"
_OF = "whose they are: the URI of a listener, or the name of an upstream"
_BYTES = "how many bytes that is"

_REPORT = "A bug, ours or a policy's. Report it, with the traceback."

_TRIED = "See whether that is what you want, before the rule or policy is in force."

_CLIENT: Fields = (
    (
        "session",
        "its id: the same in all its lines, in the audit log, and in `nbd-gateway sessions`",
    ),
    ("client", "where the client comes from: its address and port, or its process and user"),
    ("via", "with the PROXY protocol: where the load balancer comes from"),
)

_TICKET = {
    "export": _EXPORT,
    "upstream": _UPSTREAM,
    "until": "when it is over",
    "by": "the process and user that have asked",
}

# --- The table

GATEWAY = Chapter(
    "The gateway",
    (),
    (
        _event(
            "listening",
            INFO,
            "Clients may connect. One line for each listener.",
            uri="the address, with the port that was taken",
        ),
        _event(
            "shutting down",
            INFO,
            "A signal came, or the last client or the command of `--run` has ended: nobody is let in any"
            " more.",
            clients="how many clients are connected",
            sessions_end_in_seconds="how long sessions may go on (`leave-seconds`, `drain --end --deadline`)",
        ),
        _event(
            "sessions are told to end",
            INFO,
            "The gateway shuts down, and there are still sessions at the time when they have to end, or when a"
            " second signal comes.",
            sessions=_SESSIONS,
        ),
        _event(
            "all workers shut down",
            INFO,
            "The same of a gateway with several workers, each of which says it for itself as well.",
            workers="how many there are",
        ),
        _event(
            "all workers end at once",
            WARNING,
            "A second signal came to a gateway with several workers: sessions are cut.",
            "Nothing, if you sent it. If a supervisor did, give it more time than `drain-seconds`.",
            signal="which one",
        ),
        _event(
            "workers take too long to end, and are killed",
            WARNING,
            "Some workers were there still after `drain-seconds` and a few seconds more.",
            "Report it, with what they have logged last.",
            workers="their numbers",
        ),
        _event(
            "worker has died",
            ERROR,
            "One of several workers has ended, and nobody told it to. Its sessions were cut, and no others.",
            "See what it has logged last. A status below 0 is a signal: -9 may have been the system, for want"
            " of memory.",
            worker=_WORKER,
            status="its exit status",
        ),
        _event(
            "worker is started again",
            INFO,
            "Another process is started in the place of a worker that has ended.",
            worker=_WORKER,
            seconds="after how long: one that dies again and again is not started at once",
        ),
        _event(
            "worker cannot serve",
            ERROR,
            "A worker was started and cannot serve. It is tried again; clients of its disks are refused.",
            "Mend what the reason says.",
            worker=_WORKER,
            why=_WHY,
        ),
        _event(
            "worker is not as the others",
            ERROR,
            "A worker that was started again could not be told what an operator has set before (`drain`,"
            " `disable`, `pause`).",
            "If it was a pause, what was paused goes on: stop what relies on it, and pause again.",
            worker=_WORKER,
            verb="what it was told",
            why=_WHY,
        ),
        _event(
            "worker has not gone over to a configuration",
            ERROR,
            "A worker was ready for a reload and did not do it. It is killed, and started again with the new"
            " configuration.",
            "Report it, with what it has logged last.",
            worker=_WORKER,
        ),
        _event(
            "internal error of the supervisor",
            ERROR,
            "Something that was asked of a gateway with several workers has failed by a bug.",
            _REPORT,
            exception=_TRACEBACK,
        ),
        _event(
            "ending at once",
            WARNING,
            "A second signal came: sessions are cut.",
            "Nothing, if you sent it. If a supervisor did, give it more time than `drain-seconds`.",
            signal="which one",
            sessions_cut="how many sessions that cuts",
        ),
        _event(
            "state of the gateway",
            INFO,
            "SIGUSR1 came. `nbd-gateway status` shows the same, and more, over the control socket.",
            version="of the gateway",
            uptime_seconds="how long it has served",
            sessions="how many there are",
            negotiations="clients that have not opened an export yet",
            stuck_sessions="how many of the sessions are stuck",
            draining="it is shutting down",
            sessions_end_in_seconds="how long sessions may go on meanwhile",
            paused="names of exports",
            switched="names of exports, and the server that each is at",
            disks_with_losses_untold="of how many disks something may be lost that not everybody was told of",
            requests="since the start, by command",
            errors="since the start, by command and error",
        ),
        _event(
            "state of a listener",
            INFO,
            "SIGUSR1 came. One line for each listener.",
            uri="its address",
            clients="how many are connected there",
            drained="no more clients are taken there",
        ),
        _event(
            "state of an upstream",
            INFO,
            "SIGUSR1 came. One line for each upstream.",
            upstream=_UPSTREAM,
            state="up, down, disabled, or unknown: nobody has tried lately",
            why="why it is down",
            sessions=_SESSIONS,
            connections="how many there are, and are held ready",
        ),
        _event(
            "upgraded: a newer process serves",
            INFO,
            "An upgrade is done. This process accepts nobody any more, and ends when its clients have left.",
            pid="the newer process",
            clients="how many clients this process has",
        ),
        _event(
            "not upgraded, and all is as it was",
            ERROR,
            "A newer process was started and cannot take this one's place, which serves on. One line for each"
            " reason.",
            "Mend what the reason says, and ask for the upgrade again.",
            why=_WHY,
        ),
        _event(
            "not upgraded: SIGUSR2 was refused, or failed",
            WARNING,
            "SIGUSR2 asks for an upgrade, and there was none. One line for each reason.",
            "Do what the reason says, and ask again.",
            why=_WHY,
        ),
        _event(
            "the time of this process is over",
            INFO,
            "The deadline of an upgrade has passed: the sessions of the older process end, and their clients"
            " connect again.",
            sessions=_SESSIONS,
        ),
        _event(
            "the newer process has died: all is as it was before the upgrade",
            ERROR,
            "The newer process of an upgrade has died while this one was there, which accepts clients again.",
            "See what the newer process has logged last, and why it died, before you upgrade again.",
            clients="how many clients this process has",
        ),
        _event(
            "older process killed: its time was over",
            ERROR,
            "Another upgrade was asked for, and the process from before the last one was there still, more"
            " than a minute after it had to end its last session.",
            "See what it has logged last, and why it did not end.",
            pid="the older process",
        ),
        _event(
            "upgrade broken off",
            ERROR,
            "The two processes of an upgrade do not understand each other. The older one serves on.",
            "Report it, with the versions of both.",
            why=_WHY,
        ),
        _event(
            "door not taken over",
            ERROR,
            "After an upgrade, or because the newer process has died, this one accepts; but something that goes"
            " with that is not its own.",
            "Do what the reason says.",
            why=_WHY,
        ),
        _event(
            "not listened on any more",
            ERROR,
            "The newer process has died. It did not listen at an address, which cannot be had back.",
            "Restart the gateway, if clients need that address.",
            why=_WHY,
        ),
        _event(
            "socket's file was removed: listening anew",
            WARNING,
            "Somebody has removed the file of the control socket, or of a Unix socket that clients come by, so"
            " nobody could connect any more. It is there again; who was connected still is.",
            "Find out who does that: a cleaner of /tmp, or a script that is about to start another gateway.",
            path="where it is",
        ),
        _event(
            "socket's file is gone, and none can be made",
            ERROR,
            "The same, but there is no place for another one, such as a directory that is gone. It is tried"
            " again every few seconds, and said once.",
            "Do what the reason says.",
            why=_WHY,
        ),
        _event(
            "export was switched and is where the configuration says",
            WARNING,
            "An export was switched before an upgrade, and has another upstream, or is not there, in the"
            " configuration of the newer process.",
            "Switch it again, if it has to be elsewhere.",
            export=_EXPORT,
            server=_SERVER,
        ),
        _event(
            "losses of a disk that no upstream leads to any more",
            WARNING,
            "The older process has lost something of a disk, and by the newer configuration nobody can open"
            " it here and be told.",
            "Look at that disk yourself.",
            export=_THERE,
            why=_WHY,
        ),
        _event(
            "server not taken over",
            ERROR,
            "A server of `command` could not be taken over from the older process. It is ended, and another"
            " is started.",
            "Do what the reason says: more descriptors, perhaps.",
            upstream=_UPSTREAM,
            why=_WHY,
        ),
        _event(
            "a policy failed at an upgrade",
            ERROR,
            "A policy has failed by a bug as it counted the sessions of the older process: they are not"
            " counted there.",
            _REPORT,
            policy="which policy",
            exception=_TRACEBACK,
        ),
        _event(
            "service manager cannot be told",
            WARNING,
            "systemd has asked to be told what becomes of the gateway (NOTIFY_SOCKET), and that fails. Clients"
            " are served all the same. It is said once, until something could be told again.",
            "See why. Without a word of the gateway, systemd ends it when WatchdogSec has passed.",
            socket="where it is told",
            why=_WHY,
        ),
        _event(
            "repaired",
            INFO,
            "The gateway ends. One line for each upstream that needed quirks.",
            upstream=_UPSTREAM,
            sessions="for each quirk, on how many connections it was in force",
        ),
        _event(
            "configuration reloaded",
            INFO,
            "A reload has taken the file up.",
            what="what has changed",
        ),
        _event(
            "configuration stays as it was",
            (WARNING, ERROR),
            "A reload has failed, and changed nothing. One line for each reason. It is a warning where"
            " there is no file that could be reloaded.",
            "Mend the file (`nbd-gateway check FILE`), and reload again. A restart would fail as well.",
            why=_WHY,
        ),
        _event(
            "reload failed",
            ERROR,
            "A reload has failed by a bug, and changed nothing.",
            _REPORT,
            exception=_TRACEBACK,
        ),
        _event(
            "clients will need what is not there",
            WARNING,
            "At the start, or after a reload: a directory of an audit file is missing, or the program of"
            " a `command`.",
            "Put it there before the first client needs it.",
            what="what is missing, and for what",
        ),
        _event(
            "what clients will need could not be looked for",
            ERROR,
            "Looking for what clients will need has failed by a bug. They are served all the same.",
            _REPORT,
            exception=_TRACEBACK,
        ),
        _event(
            "command done",
            INFO,
            "A command came over the control socket, and was done.",
            verb="which command",
            pid="the process that asked",
            uid="its user",
            asked_by="on whose behalf, if it was the admin interface: a token or an address",
            export=_EXPORT,
            arguments="what else it said",
            done="what was done, in sentences",
            problems="what is wrong all the same",
        ),
        _event(
            "question answered",
            DEBUG,
            "Somebody has looked at the gateway over the control socket.",
            verb="what was asked",
            pid="the process that asked",
            uid="its user",
            asked_by="on whose behalf, if it was the admin interface: a token or an address",
            export=_EXPORT,
            arguments="what else it said",
        ),
        _event(
            "command not done",
            WARNING,
            "A command came over the control socket, and could not be done.",
            "Who asked has been told the same.",
            verb="which command",
            pid="the process that asked",
            uid="its user",
            asked_by="on whose behalf, if it was the admin interface: a token or an address",
            export=_EXPORT,
            arguments="what else it said",
            why="the reasons, in sentences",
        ),
        _event(
            "command undone: who asked has gone",
            WARNING,
            "Who asked for something over the control socket has left before it was done, and it was"
            " taken back.",
            "Look how things are, and ask again.",
            verb="which command",
            pid="the process that asked",
            uid="its user",
            asked_by="on whose behalf, if it was the admin interface: a token or an address",
            export=_EXPORT,
            arguments="what else it said",
        ),
        _event(
            "admin interface listening",
            INFO,
            "HTTP is spoken at an address of `[admin]`.",
            uri="the address",
        ),
        _event(
            "admin interface ended, another is begun",
            ERROR,
            "The process that speaks HTTP has ended. Clients of exports have not noticed.",
            "If it comes again and again, report a bug with what the line says.",
            status="its exit status, or less than 0: the signal that ended it",
            seconds="how soon another one is begun",
            said="the last lines of its standard error",
        ),
        _event(
            "admin interface failed",
            ERROR,
            "The process that speaks HTTP has met a bug, and goes on.",
            "Report a bug.",
            why="what it has written",
        ),
        _event(
            "admin request refused",
            WARNING,
            "Somebody has asked over HTTP with a token that is none, by a name that is not ours, or from a page"
            " of somebody else's. Once a minute at most about those who wanted to look, and as seldom about"
            " those who wanted something done.",
            "Find out who it is. A name that should be ours goes into `hosts` of `[admin]`.",
            why="what was wrong, and whether it was asked to look or to have something done",
            client="the address, or the process, of the last of them",
            count=_COUNT,
        ),
        _event(
            "admin credentials exchanged",
            INFO,
            "A file of tokens, or of certificates, of `[admin]` has changed and is in force.",
            what="which files",
        ),
        _event(
            "admin credentials stay as they were",
            ERROR,
            "A file of tokens, or of certificates, of `[admin]` has changed and cannot be used.",
            "Mend it: it is taken up by itself.",
            why="what is wrong",
        ),
        _event(
            "internal error beside the sessions",
            ERROR,
            "Something that no client waits for has failed: a health check, the end of a pause, a look at"
            " files. All else goes on.",
            _REPORT,
            exception=_TRACEBACK,
        ),
        _event(
            "a server in here lost a connection to an internal error",
            ERROR,
            "A built-in server (`memory:`, `legacy:`) has failed over a connection, and closed it.",
            _REPORT,
            exception=_TRACEBACK,
        ),
        _event(
            "keeper ended, another is begun",
            ERROR,
            "The process was killed that ends the servers of a `command` when the gateway is killed. The"
            " servers go on.",
            "Find out who killed it: most often the kernel, short of memory.",
            pid="the number that it had",
            status="how it ended: below 0, the number of a signal",
        ),
        _event(
            "log lines left out",
            WARNING,
            "More was to be said in a second than [the log takes](#rates).",
            "Look who causes it: `clients` says so.",
            lines="how many were left out",
            events="how many of each event",
            clients="how many of each address",
        ),
        _event(
            "log lines lost",
            WARNING,
            "Standard error could not be written to for so long that lines had to be thrown away. It"
            " stands where they are missing.",
            "See why whoever reads the log is slow, or whether a disk is full.",
            lines="how many are missing",
        ),
        _event(
            "audit lines lost",
            ERROR,
            "The policy `audit` could not write lines to its file. Once a minute at most.",
            "Make room, or mend the file's directory. What happened meanwhile is nowhere.",
            file="the file",
            lines="how many are missing",
            error="what the system said",
        ),
    ),
)

CREDENTIALS = Chapter(
    "Certificates and keys",
    (),
    (
        _event(
            "certificate",
            WARNING,
            "A certificate or a list of revoked ones has ended, ends within 30 days, or does not hold"
            " yet; or a certificate of ours is not for what it is shown for. At the start, after each"
            " exchange, and daily.",
            "Renew it (`nbd-gateway pki renew`); or have one made whose extendedKeyUsage fits.",
            of=_OF,
            what="which file, what of it, and when it ends or who refuses it",
        ),
        _event(
            "key",
            WARNING,
            "A private key can be read by others on this machine. As often as `certificate`.",
            "Take their rights away (`chmod 600`), and renew it if somebody may have read it.",
            of=_OF,
            what="which file, and who may read it",
        ),
        _event(
            "credentials exchanged",
            INFO,
            "Files have changed, and new connections use them.",
            of=_OF,
            files="the files that have changed",
        ),
        _event(
            "credentials stay as they were",
            ERROR,
            "Files have changed, and cannot be used. The old ones stay in use, until they end.",
            "Mend the file that `why` names; it is tried again when it changes, and at a reload.",
            of=_OF,
            why=_WHY,
        ),
    ),
)

CLIENTS = Chapter(
    "Clients that open no session",
    _CLIENT,
    (
        _event(
            "access denied",
            WARNING,
            "A rule or a policy keeps a client from an export; or from all, where it asked for the list"
            " of them.",
            "See whether the client should have it. If so, change the rule; if not, somebody tries what"
            " he should not.",
            export=_EXPORT,
            asked="`LIST`, if it was no export that was asked for",
            exports="then: how many exports there are that it may not have",
            who="who the client is, the strongest proof first",
            why="which rule or policy, and why; the client may be told less",
        ),
        _event(
            "client refused",
            (INFO, WARNING),
            "A client has asked for what cannot be had, was told so, and may go on. One that asks in the"
            " clear where TLS is required, or for TLS where there is none, has one line, when it has left."
            " It is a warning if TLS with the upstream has failed: its certificate is wrong, or only one"
            " side wants TLS.",
            "As a warning: mend the certificate, or the `uri` of the upstream. No client gets through"
            " before that.",
            asked="the option, and of which export",
            why="what the client was told; or more, if that is none of its business",
        ),
        _event(
            "client hung up on",
            (INFO, WARNING),
            "A client has sent what is no NBD, took too long, or asked for what cannot be had in a way to"
            " which there is no answer. It is a warning if TLS has failed: the client's, or with the"
            " upstream.",
            "As a warning: see who the client is, and what of its certificate or key is wrong.",
            why=_WHY,
        ),
        _event(
            "client left during negotiation",
            DEBUG,
            "A client has closed before it opened an export, as who only looks whether the port is open.",
            why=_WHY,
        ),
        _event(
            "exports listed",
            INFO,
            "A client has asked which exports there are, and was told; for the first time over its connection.",
            exports="how many it was told of",
            who="who the client is, the strongest proof first",
        ),
        _event(
            "a dirty bitmap may change while it is read",
            WARNING,
            "A client reads `qemu:dirty-bitmap:*` of an export that is read-only for it, and that others"
            " may write to.",
            "Have a backup read what nobody writes to; `contexts = { stable-only = true }` refuses such"
            " clients.",
            why=_WHY,
        ),
        _event(
            "ticket cannot be used",
            ERROR,
            "A client asks for an export that is for one use, and it cannot be written down that it is"
            " used. The client is refused.",
            "See what is wrong with the directory of tickets: it may be full, or read-only.",
            export=_EXPORT,
            why=_WHY,
        ),
        _event(
            "client lost to an internal error",
            ERROR,
            "A client's connection was closed over a bug. All others are served.",
            _REPORT,
            exception=_TRACEBACK,
        ),
    ),
)

TURNED_AWAY = Chapter(
    "Clients that do not get in",
    (),
    (
        _event(
            "client turned away",
            WARNING,
            "As many are connected to a listener as may be, or it is drained. Once a second at most.",
            "Raise `max-connections`, or see who does not leave.",
            listener="the URI by which they came",
            client="where the last of them comes from",
            why="how many are connected, or that the listener is drained",
            count=_COUNT,
        ),
        _event(
            "could not accept a client",
            ERROR,
            "The system has no descriptors or no memory for one more. Clients wait. Once a minute at most.",
            "Raise the limit that `why` names.",
            why=_WHY,
            attempts=_COUNT,
        ),
        _event(
            "clients turned away: upstream is down",
            WARNING,
            "Clients could not open an export because its upstream is down. Once a minute at most.",
            "Bring the server back.",
            upstream=_UPSTREAM,
            count=_COUNT,
        ),
    ),
)

SESSIONS = Chapter(
    "Sessions",
    (*_CLIENT, ("export", _EXPORT)),
    (
        _event(
            "session begins",
            INFO,
            "A client has opened an export.",
            listener="the URI by which it came",
            upstream=_UPSTREAM,
            tls="version and cipher; nothing in the clear",
            who="over TLS: who the client is, the strongest proof first",
            rule="which rule lets it in: its name, or its number",
            size="of the export, in bytes",
            flags="the transmission flags that the client was told",
            contexts="the meta contexts that it was told",
            quirks="the quirks in force on its connection to the upstream",
            ladder="how much the gateway could ask of the upstream: a step of the ladder",
            plan="which commands go to the server in which way (docs/explain.md)",
            connections="over how many connections, if there may be several",
            shared="true, if clients share them",
        ),
        _event(
            "session ended",
            (INFO, WARNING),
            "A session has ended. It is a warning if that was not the client's wish.",
            "See `why`: the client, the upstream, or somebody's command.",
            end="why, in one word of a closed list (docs/status.md)",
            who="over TLS: who the client is, the strongest proof first",
            why="the reason, if it was not the client's wish",
            seconds="how long it was there",
            commands="how many requests its client has made, by command",
            bytes_read="how many bytes its READs were about",
            bytes_written="the same of its WRITEs",
            errors="how many requests have failed, by command and error",
        ),
        _event(
            "session is stuck",
            WARNING,
            "A session has something to do, and nothing has gone on in it for 5 seconds.",
            "See `waits_for`: its server, its client, another session, or a policy.",
            waits_for="what it waits for, in one word (docs/status.md)",
            why="the same in a sentence",
            seconds="for how long nothing has gone on",
            upstream=_UPSTREAM,
        ),
        _event(
            "state of a session",
            INFO,
            "SIGUSR1 came. One line for each session, up to 20: those that are stuck, then the oldest.",
            upstream=_UPSTREAM,
            seconds="how long it is there",
            in_flight="requests that are under way",
            requests="since its beginning, by command",
            waits_for="what it waits for, in one word (docs/status.md); null: it has nothing to do",
            why="the same in a sentence",
            silent_seconds="for how long nothing has gone on",
        ),
        _event(
            "session is stuck no more",
            INFO,
            "It goes on, or has ended.",
            waited_for="what it has waited for",
            seconds="how long nothing had gone on",
        ),
        _event(
            "session switched",
            INFO,
            "A session goes over to another server, or to its own by a new connection.",
            server=_SERVER,
        ),
        _event(
            "session goes on over its new connection",
            INFO,
            "The connection to the upstream was lost; there is another, and nothing is left to be found"
            " out.",
        ),
        _event(
            "the server goes: no command is sent to it any more",
            INFO,
            "The server says that it shuts down. What is under way is waited for, and the session goes on"
            " when the server is back.",
        ),
        _event(
            "waits until it is known what was lost with a connection of others",
            INFO,
            "A client opens a disk while it is being found out what another's lost connection has cost.",
        ),
        _event(
            "would be denied",
            WARNING,
            'With `mode = "observe"`: the client would not have got the export.',
            _TRIED,
            why="which rule or policy, and why",
        ),
        _event(
            "would be shown otherwise",
            WARNING,
            'With `mode = "observe"`: the client would have been shown another export.',
            _TRIED,
            policies="the policies that are observed",
            without="flags that it would not have been told",
            **{"with": "flags that it would have been told"},
            without_contexts="meta contexts that it would not have been told",
            block_sizes="the block sizes that it would have been told",
        ),
        _event(
            "would be refused",
            WARNING,
            'With `mode = "observe"`: commands would have failed. Every 10 seconds at most, and at the end.',
            _TRIED,
            command="which command",
            error="the error that the client would have had",
            count=_COUNT,
            first="why the first of them",
        ),
        _event(
            "would be held",
            WARNING,
            'With `mode = "observe"`: a rate would have made commands wait. As often as `would be refused`.',
            _TRIED,
            policy="which policy",
            rate="which of its rates",
            count=_COUNT,
            seconds="for how many seconds, all of them together",
        ),
        _event(
            "would not be held",
            INFO,
            'With `mode = "observe"`: the session has ended, and a rate would never have made it wait.',
            policy="which policy",
            rate="which of its rates",
        ),
        _event(
            "a policy failed",
            ERROR,
            "A policy has failed over a command, and the client got EIO.",
            _REPORT,
            command="which command",
            policies="the policies that look at this command, one of which it is",
            exception=_TRACEBACK,
        ),
    ),
)

RULES = Chapter(
    "Sessions, and rules that have changed",
    (),
    (
        _event(
            "session not held against the new rules",
            ERROR,
            "After a reload a policy has failed over a session that runs. It goes on as it was, also if"
            " it should end.",
            f"{_REPORT} `disconnect` the client if it must not be there.",
            export=_EXPORT,
            exception=_TRACEBACK,
        ),
        _event(
            "a policy failed at a reload",
            ERROR,
            "A policy could not take over what the one before it has counted, and begins anew.",
            _REPORT,
            policy="which policy",
            exception=_TRACEBACK,
        ),
    ),
)

PAUSES = Chapter(
    "Pauses and switches",
    (),
    (
        _event(
            "export paused",
            INFO,
            "`pause` holds the sessions of an export.",
            export=_EXPORT,
            sessions=_SESSIONS,
            seconds="for how many seconds at most",
        ),
        _event(
            "export resumed",
            INFO,
            "`resume` has the sessions of an export go on.",
            export=_EXPORT,
            sessions=_SESSIONS,
        ),
        _event(
            "export resumed: nobody has done it",
            WARNING,
            "A pause has lasted as long as it may, and ended by itself.",
            "A copy that was made meanwhile is whole only if it was done before: make it again, with a"
            " longer `--for`.",
            export=_EXPORT,
        ),
        _event(
            "export resumed: who had it paused has gone",
            WARNING,
            "A pause that was for somebody's connection has ended with it.",
            "See what became of the program that had asked, and whether its copy is whole.",
            export=_EXPORT,
        ),
        _event(
            "export stays paused",
            ERROR,
            "A switch that closes first was broken off, and the sessions could not go back to where they"
            " were.",
            "Switch to a server that is there, or `resume` when theirs is back. The pause ends by itself.",
            exports="the names of the exports",
            why=_WHY,
        ),
        _event(
            "sessions have no connection at the end of a pause",
            ERROR,
            "A pause has ended, and their server is not there.",
            "Bring the server back: they try to connect for `reconnect-seconds`.",
            export=_EXPORT,
            why=_WHY,
        ),
        _event(
            "sessions have ended",
            ERROR,
            "At the end of a pause sessions were not taken back to their server: it has another disk, or"
            " an older state.",
            "See which disk the server has. The clients have lost theirs, and have to be started anew.",
            export=_EXPORT,
            why="how many sessions, and the reason",
        ),
        _event(
            "export switched",
            INFO,
            "An export is led to another server, for clients that come and those that are here.",
            export=_EXPORT,
            server=_SERVER,
            sessions=_SESSIONS,
        ),
        _event(
            "export stays where it was switched to, whatever the configuration says",
            WARNING,
            "After a reload: a switched export is where the switch has led it.",
            "Write the new server into the file, before a restart leads clients to the old one.",
            export=_EXPORT,
            server=_SERVER,
        ),
    ),
)

UPSTREAMS = Chapter(
    "Upstreams",
    (),
    (
        _event(
            "upstream is down",
            WARNING,
            "Connecting to a server has begun to fail. Once for each outage.",
            "Bring the server back.",
            upstream=_UPSTREAM,
            why=_WHY,
        ),
        _event(
            "one server of several is down",
            WARNING,
            "Connecting to one of the `uris` has begun to fail; others work. Once for each outage.",
            "Bring it back before the others fail as well.",
            upstream=_UPSTREAM,
            why=_WHY,
        ),
        _event(
            "upstream is back",
            INFO,
            "Connecting works again.",
            upstream=_UPSTREAM,
            seconds="how many seconds it was down",
            attempts="how often it was tried",
        ),
        _event(
            "upstream is stuck",
            WARNING,
            "All sessions that wait for a server are stuck.",
            "See whether the server hangs: it takes requests and answers none.",
            upstream=_UPSTREAM,
            sessions=_SESSIONS,
            seconds="for how long nothing has gone on",
        ),
        _event(
            "upstream is stuck no more",
            INFO,
            "No session that waits for it is stuck any more.",
            upstream=_UPSTREAM,
            seconds="how long it was stuck",
        ),
        _event(
            "one server of several is back",
            INFO,
            "Connecting to one of the `uris` works again.",
            upstream=_UPSTREAM,
            seconds="how many seconds it was down",
            attempts="how often it was tried",
        ),
        _event(
            "health check failed",
            WARNING,
            "A server takes connections, and gets no further. Once, until one succeeds.",
            "See what the server is busy with, or whether something else listens there.",
            upstream=_UPSTREAM,
            why=_WHY,
        ),
        _event(
            "health check succeeds again",
            INFO,
            "A server greets again.",
            upstream=_UPSTREAM,
        ),
        _event(
            "server started",
            INFO,
            "The program of a `command` was started.",
            upstream=_UPSTREAM,
            pid="its process",
            command="the program and its arguments",
        ),
        _event(
            "server taken over",
            INFO,
            "The program of a `command` runs that the process before an upgrade has started; this one keeps"
            " it.",
            upstream=_UPSTREAM,
            pid="its process",
            command="the program and its arguments",
        ),
        _event(
            "server ended",
            (INFO, WARNING),
            "The program of a `command` has ended. It is a warning if it was not asked to, and has failed.",
            "See what the program itself has said. It is started again for the next client.",
            upstream=_UPSTREAM,
            pid="its process",
            status="its exit status",
            signal="the signal that has killed it",
        ),
        _event(
            "server says",
            INFO,
            "The program of a `command` has written a line to its standard error. 50 a second at most; then a"
            " line says how many were left out.",
            upstream=_UPSTREAM,
            pid="its process",
            text="the line",
        ),
        _event(
            "repairing",
            (INFO, WARNING),
            "A quirk is in force on a connection to an upstream for the first time. It is a warning if"
            " data is at risk without it.",
            "Take a newer server, if there is one.",
            upstream=_UPSTREAM,
            quirk="its name, as in [quirks.md](quirks.md)",
            what="what the server does wrong",
        ),
        _event(
            "upstream's certificate is for clients",
            WARNING,
            "A server's certificate says that it is for clients alone. GnuTLS does not ask; the gateway has"
            " connected again, and looks at all else that proves a server. Once for each server.",
            "Have a certificate made that is for servers, or for both: docs/tls.md.",
            upstream=_UPSTREAM,
            why=_WHY,
        ),
        _event(
            "exports left out of the list",
            WARNING,
            "A server lists names that no client can ask for. Once for each server.",
            "Give these exports other names.",
            upstream=_UPSTREAM,
            names="the first of them, escaped",
            count="how many there are",
            why=_WHY,
        ),
    ),
)

LINKS = Chapter(
    "Connections that clients share, or have several of",
    (("upstream", _UPSTREAM),),
    (
        _event(
            "one connection instead of {wanted}: {why}",
            WARNING,
            "Of several connections that the configuration wants only one is of use. Once for each export"
            " and reason. [connections.md](connections.md) has the reasons.",
            "Mend what the sentence says, or want one connection.",
            export=_THERE,
        ),
        _event(
            "upstream connection lost",
            WARNING,
            "A connection to a server was lost. Another is made; clients wait meanwhile.",
            "See why the server or the network has cut it.",
            why=_WHY,
            left="how many connections there are still",
        ),
        _event(
            "upstream connection made again",
            INFO,
            "A connection that was lost has another in its place.",
            seconds="how many seconds after the last loss",
        ),
        _event(
            "upstream connections given up",
            ERROR,
            "A connection was lost, no other can be had, and the sessions end.",
            "Bring the server back as it was. The clients have lost their disk, and have to be started"
            " anew.",
            export=_THERE,
            why=_WHY,
        ),
        _event(
            "reads go over another connection meanwhile",
            INFO,
            "A connection says nothing, and a spare one was made for READs.",
        ),
        _event(
            "the server answers nothing",
            WARNING,
            "Commands are under way on a connection, and nothing has come for `stall-seconds`.",
            "See what the server waits for: its disk, most often.",
            export=_THERE,
            seconds="for how many seconds nothing has come",
            commands="how many commands wait",
        ),
        _event(
            "reads wait as well: without CAN_MULTI_CONN no other connection is good",
            WARNING,
            "A connection says nothing, and READs cannot go over another one.",
            "See what the server waits for: its disk, most often.",
            export=_THERE,
        ),
    ),
    sometimes=(*_CLIENT, ("export", _EXPORT)),
)

_DISK = {"upstream": _UPSTREAM, "export": _THERE}
_WAITS = {
    **_DISK,
    "writes": "how many writes",
    "bytes": _BYTES,
    "wait_seconds": "for how many seconds, at most",
}

LOSSES = Chapter(
    "What may be lost",
    (),
    (
        _event(
            "writes may be lost: each session's next FLUSH fails, and until then READs of them",
            WARNING,
            "A server was lost with writes that it had answered and not flushed, and nobody can prove"
            " that they are there. [connections.md](connections.md#what-is-lost-and-who-is-told) has the"
            " rule.",
            "Look at the clients that were told: a file system may be read-only now, and has to be"
            " checked.",
            **_DISK,
            why=_WHY,
            sessions="how many sessions are told",
            bytes=_BYTES,
        ),
        _event(
            "writes of a session that has ended were not flushed",
            WARNING,
            "A client has left without a FLUSH, and none could be sent for it.",
            "See whether that client needs what it wrote: a virtual machine that was killed, or a copy"
            " that failed.",
            **_DISK,
            bytes=_BYTES,
        ),
        _event(
            "the server tries no FLUSH: until one succeeds, nobody can find or write again what is lost",
            WARNING,
            'With `unflushed = "verify"` or `"replay"`: the server says no to a FLUSH that it has not tried.',
            "See why: there is no room on its disk, most often.",
            **_DISK,
            unflushed="what the configuration says",
            why=_WHY,
        ),
        _event(
            "what the server had not flushed is taken to be durable",
            WARNING,
            'With `unflushed = "assume-durable"`: after a loss nothing is looked for.',
            "Nothing, if the server keeps its word.",
            **_DISK,
        ),
        _event(
            "what the server had not flushed is all there",
            WARNING,
            'With `unflushed = "verify"`: after a loss all was read back.',
            **_DISK,
        ),
        _event(
            "what the server had not flushed was written again",
            WARNING,
            'With `unflushed = "replay"`: after a loss all was written once more.',
            **_DISK,
            writes="how many writes",
            bytes=_BYTES,
        ),
        _event(
            "writes whose answers were lost are issued again: the old ones may still come, and undo newer"
            " ones",
            WARNING,
            "Writes were under way on a connection that was lost. They are sent once more when the old"
            " ones cannot come any more.",
            **_WAITS,
        ),
        _event(
            "writes whose answers were lost are there; newer ones over them wait: the old may still come",
            WARNING,
            "Writes that were under way on a connection that was lost were found on the disk.",
            **_WAITS,
        ),
        _event(
            "what was flushed is not there any more: others write to this disk, or it is an older one",
            WARNING,
            "After a loss a place differs from what was flushed there, and it is not clear that it is"
            " another disk.",
            "See whether the server was started with a snapshot or a copy.",
            **_DISK,
            offset="where it begins, in bytes",
            bytes=_BYTES,
        ),
        _event(
            "the connection is lost each time that a place is read which was flushed: it is not looked at"
            " any more",
            WARNING,
            "After a loss the server dies whenever it is asked for that place.",
            "Look at the server and its disk: it may be broken there.",
            **_DISK,
            offset="where it begins, in bytes",
            bytes=_BYTES,
        ),
    ),
    sometimes=_CLIENT,
)

TICKETS = Chapter(
    "Exports that are made at run time",
    (),
    (
        _event(
            "ticket made",
            INFO,
            "`nbd-gateway export add` has made an export.",
            **_TICKET,
        ),
        _event(
            "ticket renewed",
            INFO,
            "`nbd-gateway export renew` has given it another end.",
            **_TICKET,
        ),
        _event(
            "ticket removed",
            INFO,
            "`nbd-gateway export remove` has ended it, and its sessions.",
            **_TICKET,
        ),
        _event(
            "ticket is over",
            INFO,
            "Its time is over, or its one use. Its sessions end after what is under way.",
            export=_EXPORT,
            why=_WHY,
        ),
        _event(
            "ticket not read",
            WARNING,
            "At a start, a file in the directory of tickets is none. All others are in force.",
            "Look at the file. If it is not of the gateway, move it away; if it is, and broken, make the export"
            " anew.",
            file="its name; after twenty, how many more there are",
            why=_WHY,
        ),
        _event(
            "ticket is not in force",
            WARNING,
            "At a start, the configuration has no place for an export that was made at run time.",
            "Give the configuration what it lacks, and reload; or remove the export.",
            export=_EXPORT,
            why=_WHY,
        ),
        _event(
            "ticket not removed from the disk",
            WARNING,
            "It is over, and its file is there still. One whose time is over is not taken up by a restart; one"
            " that was removed before is.",
            "See what is wrong with the directory.",
            tickets="how many",
            why=_WHY,
        ),
        _event(
            "a policy failed at the end of a ticket",
            ERROR,
            "All else goes on.",
            _REPORT,
            policy="which one",
            exception=_TRACEBACK,
        ),
    ),
)

_FLEET_DISK = "the disk: its server's address, and its name there"

FLEET = Chapter(
    "Several gateways, a fleet",
    (),
    (
        _event(
            "waiting to join a fleet",
            WARNING,
            "The gateway is not yet one of the fleet, and serves nobody. If it cannot become one, it ends, and"
            " says why.",
            "If it was killed a moment ago, and is started again: nothing, its old lease ends by itself. Else"
            " see to etcd, or give it a name that no other gateway has.",
            why=_WHY,
        ),
        _event(
            "joined a fleet",
            INFO,
            "The gateway is one of a fleet, and other gateways can reach it.",
            gateway="its name",
            uri="where the others reach it",
        ),
        _event(
            "etcd does not answer",
            WARNING,
            "The lease cannot be renewed. The gateway serves on until it cannot be relied on any more.",
            "See to etcd: without a majority of its members nothing is served for long.",
            why=_WHY,
            seconds="how long the lease can be relied on still",
        ),
        _event("etcd answers again", INFO, "The lease is renewed again."),
        _event(
            "lease has run out",
            ERROR,
            "Nothing is sent to disks that have a home any more. Their links are cut, and sessions wait for"
            " another one as after any loss. If etcd answers in time, they go on.",
            "See to etcd, or to what has held the gateway up: a machine that was stopped, for one.",
            homes="of how many disks this gateway was the home",
        ),
        _event(
            "disk has its home here",
            INFO,
            "From now on this gateway serves all clients of a disk.",
            disk=_FLEET_DISK,
            before="the gateways that have not given the disk away: something may still come from them",
        ),
        _event(
            "waiting for what an earlier home may have sent",
            WARNING,
            "An earlier home has ended without giving the disk away. Clients wait.",
            "A fence would make this wait unnecessary, and two writers impossible.",
            disk=_FLEET_DISK,
            before="the gateways",
            seconds="late-write-seconds of the upstream",
        ),
        _event(
            "earlier home is cut off",
            WARNING,
            "The fence has succeeded.",
            "See why that gateway has ended, and let it to the server again.",
            disk=_FLEET_DISK,
            gateway="which one was cut off",
        ),
        _event(
            "fence has failed",
            ERROR,
            "Nobody serves the disk until it succeeds. It is tried again every few seconds.",
            "Mend what the reason says.",
            disk=_FLEET_DISK,
            gateway="which one is to be cut off",
            why=_WHY,
        ),
        _event(
            "disk is lost to the fleet",
            ERROR,
            "etcd has ended the lease, so another gateway may have the disk. Its sessions here are ended.",
            "See what has kept the gateway from renewing its lease.",
            disk=_FLEET_DISK,
            why=_WHY,
        ),
        _event(
            "drained",
            INFO,
            "An operator has asked for it: the gateway gives its disks to the others, and takes none"
            " ([how](fleet.md#a-gateway-is-drained)).",
            homes="of how many disks it is the home",
            sessions_end_in_seconds="the deadline for sessions that keep their disk here; null: none",
        ),
        _event(
            "drained no more",
            INFO,
            "The gateway takes disks again.",
            homes="of how many disks it is the home still",
        ),
        _event(
            "disk is given away",
            INFO,
            "Another gateway may have the disk, and waits for nothing. Its sessions here end.",
            disk=_FLEET_DISK,
        ),
        _event(
            "disk is not given away",
            WARNING,
            "If the gateway ends, its next home has to wait, or to use the fence. If it is drained, its clients"
            " go on here, and it is tried again.",
            "Nothing, if it is seldom; else see why connections to the server end with something under way.",
            disk=_FLEET_DISK,
            why=_WHY,
        ),
        _event(
            "lease is not ended",
            WARNING,
            "The gateway ends, and others have its disks only after the time of its lease.",
            "See to etcd.",
            why=_WHY,
        ),
        _event(
            "client led to its home",
            INFO,
            "A client's upstream is the gateway that is the home of its disk: at first, and each time that"
            " this is found again.",
            session="the client's id, which is the same there",
            gateway="which one; where it is this one, the client is here a second time, with another id",
        ),
        _event(
            "home that says nothing is left",
            WARNING,
            "A client waits for an answer of a gateway that is not the home of its disk any more, and has not"
            " said so: it was stopped, or is cut off. The client is led to the next one.",
            "See why that gateway cannot renew its lease; `fence` makes sure that it writes no more.",
            session="the client's id",
            gateway="which one is left",
        ),
        _event(
            "nobody of the fleet",
            WARNING,
            "Somebody came to the address that is for other gateways, and is none that is understood.",
            "See who that is, and whether all gateways have certificates of one CA and one version.",
            why=_WHY,
        ),
        _event(
            "could not accept a gateway",
            ERROR,
            "Another gateway has come with a client, and there is no room. It is tried again.",
            "Give the gateway more descriptors or memory, as the reason says.",
            why=_WHY,
        ),
        _event(
            "signal is not obeyed in a fleet",
            WARNING,
            "A gateway of a fleet does not reload or upgrade yet.",
            "End it, and start another one in its place (docs/fleet.md).",
            verb="what the signal asks for",
        ),
    ),
)

CHAPTERS = (
    GATEWAY,
    CREDENTIALS,
    TURNED_AWAY,
    CLIENTS,
    SESSIONS,
    RULES,
    TICKETS,
    PAUSES,
    UPSTREAMS,
    LINKS,
    LOSSES,
    FLEET,
)

EVENTS = tuple(event for chapter in CHAPTERS for event in chapter.events)
