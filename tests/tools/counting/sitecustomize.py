"""Has each process of a gateway write down what it has when it gets SIGRTMIN, tasks and memory: for
whoever has this folder in PYTHONPATH, and `COUNTS` says in which folder. Python imports a module of this name
before anything else.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from pathlib import Path

if "COUNTS" in os.environ:

    class Mallinfo(ctypes.Structure):
        """`struct mallinfo2` (mallinfo(3))."""

        _fields_ = [
            (name, ctypes.c_size_t)
            for name in [
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            ]
        ]

    def buffers(objects: list[object]) -> int:
        """Give how many bytes there are in receive buffers, whether or not they are in use."""
        lane = sys.modules.get("gateway.hub.lane")
        if lane is None:
            return 0
        number = sum(isinstance(each, lane.Segment) for each in objects)
        return int(number * lane.BUFFER_BYTES)

    def asked(_number: int, _frame: object) -> None:
        """Write the counts when Trio is in the middle of nothing. The handler is run in its thread."""
        import trio

        try:
            trio.lowlevel.current_trio_token().run_sync_soon(write)
        except RuntimeError:  # it runs no more, or not yet
            write()

    def write() -> None:
        """Write this process's counts."""
        import trio

        try:
            tasks = trio.lowlevel.current_statistics().tasks_living
            # Of timeouts that are over Trio keeps up to a thousand, with what they hold, until it throws
            # them away together.
            trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines._prune()
        except RuntimeError:  # it runs no more, or not yet
            tasks = 0
        gc.collect()
        objects = gc.get_objects()
        library = ctypes.CDLL(None)
        # What is free goes back to the kernel: it is no leak.
        library.malloc_trim(0)
        library.mallinfo2.restype = Mallinfo
        info = library.mallinfo2()
        said = {
            "tasks": tasks,
            "objects": len(objects),
            "blocks": sys.getallocatedblocks(),
            "malloced": info.uordblks + info.hblkhd,
            "buffers": buffers(objects),
        }
        at = Path(os.environ["COUNTS"], str(os.getpid()))
        whole = at.with_suffix(".new")
        whole.write_text(json.dumps(said))
        whole.rename(at)

    signal.signal(signal.SIGRTMIN, asked)
