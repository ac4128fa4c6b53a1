"""The command line: one file per verb, and the only place that prints for people.

A verb's module is imported when the verb is asked for, and imports what it needs where it needs it. So `serve`
listens within a fraction of a second: nothing is loaded that only help texts or other verbs use.

    serve.py     the gateway itself
    demo.py      what it is for, on a server that needs it
    init.py      a configuration to begin with
    check.py     what is wrong with one, or what it would serve
    explain.py   what a client gets that asks for an export, and why
    schema.py    the configuration's JSON schema, for editors
    policies.py  what can be written in `policies = [ ... ]`
    quirks.py    the catalogue of what servers get wrong
    probe.py     what a server is, and what is wrong with it
    conform.py   whether it keeps its promises
    pki.py       certificates for trying TLS out
    unit.py      units of systemd for a configuration
    reload.py    a running gateway takes its configuration up anew
    pause.py, resume.py, switch.py  its exports are held, go on, go over to another server
    losses.py    what its disks may have lost
    status.py, sessions.py, exports.py, upstreams.py, top.py  what it is doing
    export.py    exports are made at run time, renewed, removed and listed
    disconnect.py  one of its sessions is ended
    drain.py, undrain.py  it takes no more clients, or takes them again
    disable.py, enable.py  it connects to an upstream no more, or does again
    upgrade.py   a newer process takes its place
    fleet.py     the gateways of a fleet, and the homes of disks
    trace.py     what the clients and servers of an export say to each other

And what several of them need:

    explained.py  what `explain` says to programs
    asking.py    which server is asked, how long it may take, how failures are told
    claims.py    what `--as` and `--from` say of a client that is not there
    running.py   speaking to a gateway that runs
    showing.py   its answers, as tables for people or as JSON, once or again and again
    vocabulary.py  names that a configuration may use, from the packages that define them

Exit status: 0 done, 1 it cannot be done (the configuration or the machine is to blame), 2 the command line is
to blame, 3 done, but something has to be seen to. For each thing that is wrong there is one line on standard
error, and never a traceback.
"""

import errno
import io
import os
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from gateway import __version__

BUILD = Path(__file__).parents[1] / "BUILD"
"""Of which commit a wheel or an sdist was made, which `packaging/hook.py` says in this file."""


def version() -> str:
    """Give what --version says: of this program and how it was built, for whoever reads a report of a bug."""
    from gateway.hub.pump import is_compiled

    build = f"build {BUILD.read_text().strip()}" if BUILD.exists() else "not a release"
    pump = "with" if is_compiled() else "without"
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{__version__} ({build}, {pump} the compiled pump, Python {python})"


app = App(
    name="nbd-gateway",
    help="Stands between NBD clients and NBD servers, and speaks to each in its own dialect.",
    version=version,
    version_flags=("--version", "-V"),
    # Our texts have examples in them, whose lines have to stay as they are.
    help_format="plaintext",
    # No --no-x beside each --x, and --listen may be given several times rather than several values.
    default_parameter=Parameter(negative=(), consume_multiple=False, show_default=False),
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
)
VERBS = (
    *(
        "serve",
        "demo",
        "check",
        "reload",
        "pause",
        "resume",
        "switch",
        "losses",
        "status",
        "sessions",
        "exports",
        "upstreams",
        "top",
        "disconnect",
        "export",
        "drain",
        "undrain",
        "disable",
        "enable",
        "trace",
        "upgrade",
        "fleet",
        "explain",
        "probe",
        "conform",
    ),
    *("policies", "quirks", "init", "unit", "pki", "schema"),
)
for _order, _verb in enumerate(VERBS):
    app.command(f"gateway.cli.{_verb}:{_verb}", name=_verb, sort_key=_order)


BEGIN_WITH = "Begin with: nbd-gateway demo. All of a verb: nbd-gateway help VERB"

TAKES_A_FILE = ("check", "explain", "unit")
FLAGS = ("--json", "--offline", "--sockets")
"""Verbs whose first argument is a configuration, which may be standard input; and those of their options that
have no value.
"""

RUNS_A_COMMAND = ("pause",)
"""Verbs that run a command of the user: all that comes after "--"."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""


class UsageError(Exception):
    """The command line makes no sense; the text says what to write instead."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: this process's) and give its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name need not be UTF-8, and must not break the message about it.
            stream.reconfigure(errors="backslashreplace")
    if arguments is None:
        arguments = sys.argv[1:]
    arguments = with_standard_input(with_command(arguments))
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    of_all = arguments in ([], ["--help"], ["-h"])
    if of_all:
        # Import all verbs, for the list takes their texts from there, and cyclopts does not import them for it.
        for verb in VERBS:
            app[verb]
    try:
        status = app(arguments)
        if of_all:
            print(BEGIN_WITH)  # as the app's epilogue it would end every verb's help
        if sys.stdout is not None:  # the shell may have closed it: >&-
            sys.stdout.flush()
    except UnusedCliTokensError as error:
        complain(_unexpected(error.unused_tokens or [], error.command_chain or ()))
        return 2
    except (CycloptsError, UsageError) as error:
        complain(str(error))
        return 2
    except (OSError, ExceptionGroup) as error:
        why = _first(error)
        if not isinstance(why, OSError) or why.errno not in _UNWRITABLE:
            raise
        write_no_more()
        # Whoever reads us (head, less) has seen enough. That is no error.
        if why.errno != errno.EPIPE:
            complain(f"standard output cannot be written: {why.strerror}")
        return 1
    return status if isinstance(status, int) else 0


def write_no_more() -> None:
    """Standard output cannot be written: discard what is left, for to flush it at exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def with_command(arguments: list[str]) -> list[str]:
    """Give a command line with what comes after "--" in one word, for verbs that run a command."""
    if not arguments or arguments[0] not in RUNS_A_COMMAND or "--" not in arguments:
        return arguments
    at = arguments.index("--")
    return [*arguments[:at], f"--run={shlex.join(arguments[at + 1 :])}"]


def with_standard_input(arguments: list[str]) -> list[str]:
    """Give a command line with a "-" that stands for standard input where it is not taken for an option."""
    for at, argument in enumerate(arguments):
        if argument == "-" and arguments[at - 1] == "--config":
            return [*arguments[: at - 1], "--config=-", *arguments[at + 1 :]]
        is_value = arguments[at - 1].startswith("-") and arguments[at - 1] not in FLAGS
        if argument == "-" and arguments[0] in TAKES_A_FILE and not is_value:
            return [*arguments[:at], *arguments[at + 1 :], "--", "-"]
    return arguments


def _unexpected(arguments: Iterable[str], verb: Iterable[str]) -> str:
    words = [f'"{argument}"' for argument in arguments]
    return (
        f"unexpected argument{'s' if len(words) > 1 else ''} {', '.join(words)};"
        f" see {' '.join(['nbd-gateway', *verb, '--help'])}"
    )


# Each verb handles errors of the files that it opens, so one of these is about standard output.
_UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def _first(error: Exception) -> Exception:
    """Take an error out of the groups that Trio's nurseries put around it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def complain(message: str) -> None:
    """Print a line on standard error, with our name before it. If that fails, there is nobody to tell. A peer's
    words may be in it, and must not command the terminal.
    """
    from gateway.wire.handshake import printable

    with suppress(OSError):
        print(f"nbd-gateway: {printable(message)}", file=sys.stderr)
