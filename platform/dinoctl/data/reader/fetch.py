"""One piece on its way: asked for, checked sample by sample, tried again, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google_crc32c import value as crc32c

from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError
from dinoctl.data.reader.blocks import Body, Part
from dinoctl.data.reader.cache import DiskCache
from dinoctl.data.reader.plan import Piece
from dinoctl.data.reader.ranges import Ranges

_AGAIN = 2  # wrong bytes may be the network's fault: read again so often before calling a sample broken

Result = bytes | Part | Exception
"""A sample's bytes, perhaps still where they were received, or why it cannot be had."""


class Fetch:
    """State of a piece; guarded by the reader's lock."""

    __slots__ = ("active", "asked", "began", "failures", "hedged", "left", "opened", "piece", "results")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.began: float | None = None  # of the first try, later by what others waited: patience counts from here
        self.asked: float | None = None  # of the latest try; None while the first one, or a new one, waits
        self.active = 0  # tries on their way
        self.failures = 0
        self.hedged = False
        self.opened = False  # whether its first sample was taken
        self.left = piece.bytes  # of samples not taken yet
        self.results: list[Result] | None = None

    def asks(self, now: float, waited: float) -> None:
        """A try begins that ``waited`` seconds for its turn."""
        self.began = now if self.began is None else self.began + waited
        self.asked = now

    def seconds(self, now: float) -> float:
        """Time since the first try, without what later ones waited for their turn."""
        return 0.0 if self.began is None else now - self.began


class Wire:
    """Gets pieces, from the cache or by requests, and counts what that took. Each thread has one of its own."""

    def __init__(self, datasets: Sequence[Dataset], ranges: Mapping[int, Ranges], cache: DiskCache | None) -> None:
        self._datasets, self._ranges, self._cache = datasets, ranges, cache
        self.bytes = self.requests = self.again = self.hits = 0

    def samples(self, piece: Piece) -> list[Result]:
        """The piece: with one request for what the cache has not, and with more for samples whose bytes are wrong.

        Raises:
            ChangedError: the dataset is not the one that was opened.
            Exception: see `Ranges.get`.
        """
        if self._cache is None:
            return self._fetched(piece, 0, len(piece.extent.lengths))
        held = self._cache.read(piece.source, piece.first, piece.extent)
        missing = [i for i, sample in enumerate(held) if sample is None]
        self.hits += len(held) - len(missing)
        if not missing:
            return [sample or b"" for sample in held]
        start, end = missing[0], missing[-1] + 1
        fetched = [one.take() if isinstance(one, Part) else one for one in self._fetched(piece, start, end)]
        fresh = [one if isinstance(one, bytes) and held[start + i] is None else None for i, one in enumerate(fetched)]
        self._cache.write(piece.source, piece.first, piece.extent, [None] * start + fresh)
        return [*(sample or b"" for sample in held[:start]), *fetched, *(sample or b"" for sample in held[end:])]

    def _fetched(self, piece: Piece, start: int, end: int) -> list[Result]:
        """Samples ``start`` to ``end`` of a piece."""
        extent = piece.extent
        begin, stop = extent.offsets[start], extent.offsets[end - 1] + extent.lengths[end - 1]
        spans = [(extent.offsets[i] - begin, extent.offsets[i] - begin + extent.lengths[i]) for i in range(start, end)]
        body = self._get(piece, begin, stop)
        if body.size != stop - begin:
            return [self._again(piece, i) for i in range(start, end)]
        return [
            part if part.crc() == extent.crcs[i] else self._instead(part, piece, i)
            for i, part in enumerate(body.parts(spans), start)
        ]

    def _instead(self, wrong: Part, piece: Piece, i: int) -> Result:
        wrong.drop()
        return self._again(piece, i)

    def _again(self, piece: Piece, i: int) -> Result:
        extent = piece.extent
        for _ in range(_AGAIN):
            self.again += 1
            body = self._get(piece, extent.offsets[i], extent.offsets[i] + extent.lengths[i])
            if body.size == extent.lengths[i]:
                sample = body.parts([(0, body.size)])[0].take()
                if crc32c(sample) == extent.crcs[i]:
                    return sample
        dataset = self._datasets[piece.source]
        dataset.check_unchanged()
        return DataError(dataset.broken(piece.first + i))

    def _get(self, piece: Piece, start: int, end: int) -> Body:
        self.requests += 1
        body = self._ranges[piece.source].get(piece.extent.path, start, end)
        self.bytes += body.size
        return body
