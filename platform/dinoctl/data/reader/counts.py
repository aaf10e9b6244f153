"""What a reader did, in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class ReadCounts(NamedTuple):
    """Counts since the start, of one reader or of several together."""

    bytes: int = 0
    """Of answers that were used or discarded, tar headers included."""
    requests: int = 0
    """All of them: first ones, retries, hedges, samples that were asked for again."""
    retries: int = 0
    """After a failure that may pass, and after wrong bytes."""
    hedges: int = 0
    """Second requests because the first one was late."""
    cache_hits: int = 0
    """Samples that came from the disk cache."""
    cache_failures: int = 0
    """Reads and writes that the cache's disk refused."""

    def plus(self, other: ReadCounts) -> ReadCounts:
        """Both together."""
        return total((self, other))


def total(counts: Iterable[ReadCounts]) -> ReadCounts:
    """All of them together."""
    return ReadCounts(*(sum(column) for column in zip(*counts, strict=True)))
