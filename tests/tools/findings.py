"""What a run of real programs has counted, and found wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MOST_PROBLEMS = 5
"""So many are enough to know."""


@dataclass(kw_only=True)
class Findings:
    """The part of a report that all runs have."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Commands that were answered, and what else there is to count."""

    def problem(self, text: str) -> None:
        """Note what is wrong."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(text)

    @property
    def counted(self) -> str:
        """What was counted, in a line."""
        return ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))

    @property
    def wrong(self) -> list[str]:
        """What is wrong, in lines."""
        return [f"  WRONG: {problem}" for problem in self.problems]
