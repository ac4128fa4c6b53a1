"""One row against a gateway under cProfile: where its own time goes.

cProfile slows Python code and not system calls, so the shares are a hint and the throughput of such a
run means nothing. The gateway is one Trio thread, which is what cProfile sees.
"""

from __future__ import annotations

import pstats
import sys
import tempfile
from pathlib import Path

from tests.bench.measure import measure
from tests.bench.peers import Stage, gateway_command
from tests.bench.processes import Broken
from tests.bench.rows import GATEWAY, Copy, Fio, Row

_LINES = 25
_STOP_SECONDS = 35.0  # it drains, then cProfile writes its file


def profile(row: Row, stage: Stage, seconds: float) -> None:
    """Prints the functions that took most time of their own."""
    if not isinstance(row.load, Fio | Copy):
        raise Broken(f"{row.name} has no load to profile")
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "profile"
        child = stage.launch(
            GATEWAY, lambda port: gateway_command(stage.upstream.uri, port, profile=target)
        )
        stage.use(GATEWAY, child)
        value = measure(row, GATEWAY, stage, seconds).value
        child.stop(_STOP_SECONDS)
        if not target.exists():
            raise Broken(f"the gateway left no profile:\n{child.last_words()}")
        print(f"{row.name}: {value:.2f} {row.unit} under cProfile")
        pstats.Stats(str(target), stream=sys.stdout).sort_stats("tottime").print_stats(_LINES)
