"""One piece on its way: asked for, checked sample by sample, tried again, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google_crc32c import value as crc32c

from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError
from dinoctl.data.reader.plan import Piece
from dinoctl.data.reader.ranges import Ranges

_AGAIN = 2  # wrong bytes may be the network's fault: read again so often before calling a sample broken

Result = bytes | Exception
"""A sample's bytes, or why it cannot be had."""


class Fetch:
    """State of a piece; guarded by the reader's lock."""

    __slots__ = ("active", "asked", "began", "failures", "hedged", "left", "opened", "piece", "results")

    def __init__(self, piece: Piece, now: float) -> None:
        self.piece = piece
        self.began = now  # of the first try: patience counts from here
        self.asked = now  # of the latest try
        self.active = 0  # tries on their way
        self.failures = 0
        self.hedged = False
        self.opened = False  # whether its first sample was taken
        self.left = piece.bytes  # of samples not taken yet
        self.results: list[Result] | None = None


class Wire:
    """Asks for pieces and counts what that took. Each reader's thread has one of its own."""

    def __init__(self, datasets: Sequence[Dataset], ranges: Mapping[int, Ranges]) -> None:
        self._datasets, self._ranges = datasets, ranges
        self.bytes = self.requests = self.again = 0

    def samples(self, piece: Piece) -> list[Result]:
        """The piece with one request, and with more for samples whose bytes are wrong.

        Raises:
            ChangedError: the dataset is not the one that was opened.
            Exception: see `Ranges.get`.
        """
        extent = piece.extent
        start = extent.offsets[0]
        data = memoryview(self._get(piece, start, extent.end))
        results: list[Result] = []
        for i, (offset, length, crc) in enumerate(zip(extent.offsets, extent.lengths, extent.crcs, strict=True)):
            sample = bytes(data[offset - start : offset - start + length])
            results.append(sample if crc32c(sample) == crc else self._again(piece, i))
        return results

    def _again(self, piece: Piece, i: int) -> Result:
        extent = piece.extent
        for _ in range(_AGAIN):
            self.again += 1
            sample = self._get(piece, extent.offsets[i], extent.offsets[i] + extent.lengths[i])
            if crc32c(sample) == extent.crcs[i]:
                return sample
        dataset = self._datasets[piece.source]
        dataset.check_unchanged()
        return DataError(dataset.broken(piece.first + i))

    def _get(self, piece: Piece, start: int, end: int) -> bytes:
        self.requests += 1
        data = self._ranges[piece.source].get(piece.extent.path, start, end)
        self.bytes += len(data)
        return data
