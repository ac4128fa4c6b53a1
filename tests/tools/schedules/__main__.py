"""`python -m tests.tools.schedules`: schedules by their seeds.

python -m tests.tools.schedules 17            one, with all that happens
python -m tests.tools.schedules 17 --shrink   the smallest that fails as it does
python -m tests.tools.schedules 0-2000        many: which fail, and how
python -m tests.tools.schedules 0-2000 --shrink   the same, with the smallest of each
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.tools.schedules.run import plan_of, run
from tests.tools.schedules.shrink import shrink


def main() -> int:
    """Give the exit status: 0 if none fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.schedules", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("seeds", help="one, or FIRST-BEHIND_THE_LAST")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--log", action="store_true", help="show what the gateway said")
    said = parser.parse_args()
    first, _, behind = said.seeds.partition("-")
    seeds = range(int(first), int(behind) if behind else int(first) + 1)
    failed = 0
    began = time.process_time()
    for seed in seeds:
        outcome = run(seed, *plan_of(seed))
        if outcome.problem:
            failed += 1
            outcome = shrink(outcome) if said.shrink else outcome
        if len(seeds) == 1 or (outcome.problem and said.shrink):
            print(outcome, flush=True)
        elif outcome.problem:
            print(f"{seed}: {outcome.problem.splitlines()[-1]}", flush=True)
        if said.log:
            print(*outcome.log, sep="\n")
    if len(seeds) > 1:
        each = (time.process_time() - began) / len(seeds)
        print(f"{failed} of {len(seeds)} fail; {1000 * each:.0f} ms of processor time each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
