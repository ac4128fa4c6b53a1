"""`python -m tests.tools.build_pump TARGET [FLAG...]`: the compiled pump as in a wheel, with more flags.

`--sanitised` is short for the sanitisers of addresses and of undefined behaviour: what it does wrong ends the
process. `CC` names another compiler.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.packing import TOP, packing

PUMP = packing("pump")

SANITISED = (
    "-Werror",
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)


def build(target: Path, *flags: str) -> None:
    """Build it. Raises `OSError` or `CalledProcessError`."""
    PUMP.compile_pump(TOP / PUMP.SOURCE, target, *flags)


def main(arguments: list[str]) -> int:
    """Build; give the exit status."""
    target, *flags = arguments
    given = [each for flag in flags for each in (SANITISED if flag == "--sanitised" else (flag,))]
    try:
        build(Path(target), *given)
    except (OSError, subprocess.CalledProcessError) as error:
        print(getattr(error, "stderr", "") or error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
