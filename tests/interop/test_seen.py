"""What docs/quirks.md says was seen of programs that this machine has, seen again. No gateway is between.

tests/trixie/test_seen.py does the same with the programs of Debian 13.
"""

from __future__ import annotations

from tests.interop.seen import TESTS
from tests.interop.seen import disk as disk

globals().update(TESTS)
