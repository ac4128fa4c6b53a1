"""`python -m tests.fuzz.by_coverage [TARGET...]`: inputs that reach new code are kept, and changed further.

Atheris does that, and nothing else needs it: what it finds is replayed without (`test_corpus`). Each target
runs in a process of its own, until its time is over or it has found something, whose input is then in its
corpus. What it learns is kept in `.fuzz`, and the next run goes on from there; `--keep` makes a small corpus of
it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random

from tests.fuzz import instrumented
from tests.fuzz.__main__ import mutated
from tests.fuzz.target import Target
from tests.fuzz.targets import CORPUS, TARGETS

LEARNT = Path(".fuzz")
MAX_INPUT_BYTES = 1024
"""Room for a dozen messages; what is longer is slow, and reaches no other code."""
MAX_KEPT_BYTES = 512
"""In the corpus that is kept, so that a person may look at it, and it stays small."""
SECONDS_FOR_ONE_INPUT = 10
"""A reader that takes longer has found a way to hold everybody up."""
MEBIBYTES = 1024
"""A reader that takes more memory forgets a bound: atheris and a session take 200."""


def with_messages(target: Target, data: bytes, max_bytes: int, seed: int) -> bytes | None:
    """Put a whole message into an input, changed a little; None: change single bytes of it instead."""
    random = Random(seed)
    if not target.messages or random.randrange(3):
        return None
    at = random.randrange(len(data) + 1)
    message = mutated(random, random.choice(target.messages))
    return (data[:at] + message + data[at:])[:max_bytes]


def options(name: str, seconds: int, inputs: int) -> list[str]:
    """Give libFuzzer's options and directories: it writes into the first, and reads the others as well."""
    learnt = LEARNT / name
    return [
        f"-max_total_time={seconds}",
        f"-runs={inputs}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={SECONDS_FOR_ONE_INPUT}",
        f"-rss_limit_mb={MEBIBYTES}",
        f"-artifact_prefix={CORPUS / name}/",
        "-print_final_stats=1",
        str(learnt),
        str(CORPUS / name),
    ]


def keeping(name: str) -> list[str]:
    """Give the options that make the smallest corpus which reaches the same code as all that was learnt."""
    return [
        "-set_cover_merge=1",
        "-use_counters=0",  # how often code was reached does not count here
        f"-max_len={MAX_KEPT_BYTES}",
        str(CORPUS / name),
        str(LEARNT / name),
    ]


def beginnings(target: Target) -> Iterator[bytes]:
    """Give what to begin with: all messages in a row, and, of what is read as a whole, each in its place."""
    for start in target.start:
        yield start
        if target.comes_in_pieces:
            yield (start + b"".join(target.messages))[:MAX_INPUT_BYTES]
        else:
            yield from (start + message for message in target.messages)


def run(name: str, arguments: list[str]) -> int:
    """Fuzz one target in a process of its own; give its exit status."""
    (LEARNT / name).mkdir(parents=True, exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(beginnings(TARGETS[name])):
        (LEARNT / name / f"beginning-{number}").write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz.atheris_main", name, *arguments]
    environment = instrumented.environment() if name == instrumented.TARGET else None
    return subprocess.run(command, check=False, env=environment).returncode


def main(arguments: list[str]) -> int:
    """Run; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.by_coverage", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument(
        "--inputs", type=int, default=-1, help="no more for each (default: -1, any)"
    )
    parser.add_argument("--keep", action="store_true", help="make the corpus of what was learnt")
    parser.add_argument("target", nargs="*", help=f"default: all of {', '.join(TARGETS)}")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.target) - set(TARGETS):
        parser.error(f"expected some of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    if find_spec("atheris") is None:
        print("atheris is not installed here; make fuzz-coverage does that", file=sys.stderr)
        return 2
    names = chosen.target or list(TARGETS)
    if instrumented.TARGET in names and (missing := instrumented.missing()):
        print(missing, file=sys.stderr)
        return 2
    found = []
    for name in names:
        print(f"== {name}", flush=True)
        how = keeping(name) if chosen.keep else options(name, chosen.seconds, chosen.inputs)
        if run(name, how):
            found.append(name)
    if found:
        print(
            f"found something in {', '.join(found)}: its input is in {CORPUS}, pytest tests/fuzz replays it"
        )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
