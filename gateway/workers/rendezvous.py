"""Which of several workers a key belongs to: rendezvous hashing. Pure.

Each worker has a score for each key, a hash of both, and the highest score wins (Thaler and Ravishankar, "A
name-based mapping scheme for rendezvous", 1996). So every process finds the same one without asking another;
keys are spread evenly; and if there is one worker more, only those keys move that go to it. Workers are known
by their numbers, and a worker that is started in the place of one that died has its number, so nothing moves
then.

The hash is BLAKE2b and not Python's own, which differs between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

SCORE_BYTES = 8
"""Of the hash. Two scores are the same once in 2**64; then the lower number wins, everywhere."""


def key_bytes(texts: Sequence[str]) -> bytes:
    """Give texts as bytes that no other texts have: each with its length before it."""
    parts = [each.encode("utf-8", "surrogateescape") for each in texts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def worker_of(key: bytes, workers: int) -> int:
    """Give the number of the worker, from 0 on, that a key belongs to."""
    if workers < 1:
        raise ValueError(f"expected one worker at least, got {workers}")
    return max(range(workers), key=lambda number: (_score(key, number), -number))


def _score(key: bytes, worker: int) -> bytes:
    salt = worker.to_bytes(4, "big")
    return blake2b(key, digest_size=SCORE_BYTES, salt=salt).digest()
