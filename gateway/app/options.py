"""What concerns one run of the gateway rather than what it serves: the options of `serve` that no file has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """What concerns one run rather than the service."""

    run: str | None = None
    """A shell command: the gateway ends with it, and with its status."""
    pidfile: Path | None = None
    exit_after_last_client: bool = False
    from_standard_input: bool = False
    """The configuration is: there it is no more."""

    @property
    def ends_with(self) -> str:
        """What the gateway ends with, beside signals, in words; empty: with nothing else."""
        if self.run is not None:
            return "the command of --run"
        return "its last client" if self.exit_after_last_client else ""

    @property
    def why_no_newer(self) -> str:
        """Why no newer process can be started by the same command line; empty: nothing is known against it."""
        if self.from_standard_input:
            return "the configuration came from standard input, where a newer process would not find it"
        if not self.ends_with:
            return ""
        return (
            f"the gateway ends with {self.ends_with}, and whoever has started it waits for the end of this"
            " process"
        )


USUAL = RunOptions()
"""Of a gateway that serves until it is told to end."""
