"""`python -m tests.fuzz.atheris_main TARGET [libFuzzer's options and directories]`: one target, by coverage.

The one module that needs atheris, which looks at code while it is imported: so all of ours is imported here.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import atheris

from tests.fuzz import instrumented

# `tomllib` reads a configuration before we do, and `ipaddress` the addresses in it.
PYTHON = ["gateway", "policies", "tomllib", "ipaddress"]
COMPILED = sys.argv[1:2] == [instrumented.TARGET]
if COMPILED:
    instrumented.load()

with nullcontext() if COMPILED else atheris.instrument_imports(include=PYTHON):
    from tests.fuzz.by_coverage import with_messages
    from tests.fuzz.target import check
    from tests.fuzz.targets import TARGETS


def main(name: str, options: list[str]) -> None:
    """Fuzz; never returns."""
    target = TARGETS[name]

    def one_input(data: bytes) -> None:
        check(target, data)

    def changed(data: bytes, max_bytes: int, seed: int) -> bytes:
        made = with_messages(target, data, max_bytes, seed)
        return atheris.Mutate(data, max_bytes) if made is None else made

    # A merge runs this command again, in a shell, with options behind it.
    command = f"{sys.executable} -m tests.fuzz.atheris_main {name}"
    atheris.Setup([command, *options], one_input, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
