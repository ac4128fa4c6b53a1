"""Pages that one types after: what stands in their ```console blocks is run, and has to print what stands
there.

    $ nbd-gateway serve memory:1M &        runs on behind; the next line is run when it listens
    $ nbdinfo nbd://127.0.0.1:10810
    export="":                             has to be printed, and then
    ...                                    anything, and then
        block_size_minimum: 1              that, wherever it stands in its line
    $ echo more \\
    > than one line

A file is a block with a title: ```toml title="gateway.toml". All of a page is one story in one directory,
which is its home as well. Ports of 10800 to 10899 are others when it is run. A command that fails has its
words on the page, for a reader would wonder.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.tools.patience import HANG_SECONDS

FENCE = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PORT = re.compile(r"\b108\d\d\b")
ANYTHING = "..."
MARK = "@@@ "

BEGIN = r"""
listens() { # what it writes, its process
    until grep -q listening "$1"; do
        kill -0 "$2" 2>/dev/null || { cat "$1"; return 9; }
        sleep 0.05
    done
}
trap 'trap - EXIT; for each in $(jobs -p); do kill "$each" 2>/dev/null; done; wait' EXIT
"""


@dataclass(frozen=True)
class Step:
    """A file to write, or a command with what it prints."""

    file: str
    text: str
    printed: tuple[str, ...] = ()


def steps(page: str) -> list[Step]:
    """What a page has its reader do."""
    found: list[Step] = []
    for indent, language, title, block in FENCE.findall(page):
        text = re.sub(f"(?m)^{indent}", "", block)
        if title:
            found.append(Step(title, text))
        elif language == "console":
            found += commands(text)
    return found


def commands(block: str) -> Iterator[Step]:
    """What a block of a terminal has."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        typed, *lines = part.splitlines()
        while lines and lines[0].startswith("> "):
            typed += "\n" + lines.pop(0)[2:]
        yield Step("", typed, tuple(each for each in lines if each.strip()))


def run(
    page: str,
    there: Path,
    bash: Callable[[str, Path], str] | None = None,
    *,
    own_ports: bool = False,
) -> None:
    """Do what a page says, in a directory. Raises AssertionError where it is not as the page has it. `bash`
    runs a script there and gives what it prints: this machine's, if nothing is said. With `own_ports` it has
    all ports to itself, and they are those of the page.
    """
    ports: dict[str, str] = {}
    if not own_ports:
        page = PORT.sub(lambda found: ports.setdefault(found[0], free_port()), page)
    todo = steps(page)
    assert any(not step.file for step in todo), "a page without a command"
    script, told = BEGIN, [step for step in todo if not step.file]
    number = 0
    for place, step in enumerate(todo):
        if step.file:
            # Where it is typed, for a page may write a file again.
            (there / f".{place}.file").write_text(step.text)
            script += f"cp .{place}.file '{step.file}'\n"
        else:
            script += typed(number, step.text)
            number += 1
    shown = (bash or bash_here)(script, there)
    parts = re.split(rf"^{MARK}(\d+)\n", shown, flags=re.MULTILINE)[1:]
    outputs = dict(zip(map(int, parts[::2]), parts[1::2], strict=True))
    assert len(outputs) == len(told), shown
    for step, output in zip(told, outputs.values(), strict=True):
        said, _, status = output.rpartition(f"{MARK}status ")
        assert is_as_printed(step.printed, said), f"{step.text}\n{said}"
        begins = page.index(step.text.splitlines()[0])
        fails_for_a_reason = step.printed or "echo $?" in page[begins:][:200]
        assert status.strip() == "0" or fails_for_a_reason, f"{step.text}\n{said}"


def typed(number: int, command: str) -> str:
    """The lines of a script that do what a person does who types this."""
    head = f"echo '{MARK}{number}'\n"
    if command.endswith("&"):
        log = f".{number}.log"
        return f"{head}: >{log}; {command[:-1]} >{log} 2>&1 & listens {log} $!\necho '{MARK}status '$?\n"
    # In this shell and not in one of its own, for it may be "export" or "cd". $? is that of the last command.
    return f'{head}(exit $status)\n{command}\nstatus=$?; echo "{MARK}status $status"\n'


def is_as_printed(printed: tuple[str, ...], said: str) -> bool:
    """Say whether these lines are in what was said, in this order. Spaces are as many as there are."""
    lines = [" ".join(line.split()) for line in said.splitlines()]
    at = 0
    for line in printed:
        wanted = [" ".join(each.split()) for each in line.split(ANYTHING) if each.strip()]
        while wanted:
            if at == len(lines):
                return False
            if in_order(wanted, lines[at]):
                break
            at += 1
    return True


def in_order(wanted: list[str], line: str) -> bool:
    return re.search(".*".join(map(re.escape, wanted)), line) is not None


AS_TYPED = {"COLUMNS": "120", "LC_ALL": "C.UTF-8"}


def bash_here(script: str, there: Path) -> str:
    """Run a script with the programs of this machine, and ours."""
    path = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"]
    environment = {**os.environ, **AS_TYPED, "PATH": os.pathsep.join(path), "HOME": str(there)}
    return said_by(["bash", "--norc", "-c", script], there, environment)


def said_by(command: list[str], there: Path, environment: dict[str, str]) -> str:
    """Give all that a command prints. It is ended, with all that it has started, when it hangs."""
    with (
        subprocess.Popen(
            command,
            cwd=there,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",  # nbdinfo 1.14 prints what it finds in memory, where there is no "file"
            start_new_session=True,
        ) as process
    ):
        try:
            return process.communicate(timeout=HANG_SECONDS)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])
