"""The compiled pump with a counter at each of its edges: what the target `pump` is guided by.

Clang puts the counters there, and the sanitisers of addresses and of undefined behaviour. Who reads the
counters is libFuzzer. It has to be in one library with the sanitisers, for they have functions of the same
names that count nothing, and that library has to be there first. Atheris brings it; it is preloaded.

This build lies beside what was learnt, so the one that everybody else uses stays as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from shutil import which

TARGET = "pump"
BUILT = Path(".fuzz/_pump.so")
PUMP = "gateway.hub._pump"
CLANG = os.environ.get("CLANG", "clang")
FLAGS = ("--sanitised", "-fsanitize=fuzzer-no-link")
OPTIONS = "detect_leaks=0:quarantine_size_mb=64:malloc_context_size=8"
"""Python leaks at its end. What was freed is not used again for a while, but buffers are large. Where a block
was taken is remembered for ever, and there is no end to who calls whom in Python."""


def missing() -> str:
    """Say what is not here that it takes, or nothing."""
    if which(CLANG):
        return ""
    return f"{CLANG} is missing, which builds {TARGET} (Debian packages clang and libclang-rt-dev)"


def environment() -> dict[str, str]:
    """Build it; give the environment of a process that is to `load` it."""
    BUILT.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.tools.build_pump", str(BUILT), *FLAGS]
    subprocess.run(command, check=True, env=os.environ | {"CC": CLANG})
    atheris = find_spec("atheris")
    assert atheris is not None
    assert atheris.origin is not None
    its = {name: value for name, value in os.environ.items() if name != "NBD_GATEWAY_PUMP"}
    return its | {
        "LD_PRELOAD": str(Path(atheris.origin).parents[1] / "asan_with_fuzzer.so"),
        "ASAN_OPTIONS": OPTIONS,
        # Objects of Python's own allocator lie side by side in what the sanitiser takes for one block.
        "PYTHONMALLOC": "malloc",
    }


def load() -> None:
    """Have this process take it for the pump, whatever lies beside the source."""
    spec = spec_from_loader(PUMP, ExtensionFileLoader(PUMP, str(BUILT)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[PUMP] = module
    from gateway.hub import pump

    assert pump.is_compiled()
