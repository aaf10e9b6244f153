"""Many small pieces with few large requests, several on the way at once: what makes resuming from a bucket fast.

Pieces that lie close together in a file are fetched as one span; spans are fetched in the order in which they will be
asked for, a bounded number ahead of the reader.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dinoctl.data.errors import StorageError
from dinoctl.data.storage import Storage
from dinoctl.training.manifest import Piece

SPAN = 8 * 2**20
"""Bytes of a request, unless a single piece is larger."""

GAP = 256 * 2**10
"""Bytes between two pieces that are read along rather than asked around."""

AHEAD = 16
"""Spans fetched before their first piece is asked for: 128 MiB at most."""

_THREADS = 8


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of a file, which hold ``pieces``."""

    file: str
    start: int
    end: int
    pieces: tuple[Piece, ...]


def plan(pieces: Iterable[Piece]) -> list[Span]:
    """Spans that hold all pieces, in the order in which their first piece comes in ``pieces``."""
    order: dict[tuple[str, int], int] = {}
    for piece in (wanted := list(pieces)):
        order.setdefault((piece.file, piece.position), len(order))
    groups: list[list[Piece]] = []
    for piece in sorted(wanted, key=lambda piece: (piece.file, piece.position)):
        if not groups or not _joins(groups[-1], piece):
            groups.append([])
        groups[-1].append(piece)
    groups.sort(key=lambda group: min(order[piece.file, piece.position] for piece in group))
    return [Span(group[0].file, group[0].position, max(map(_end, group)), tuple(group)) for group in groups]


def _joins(group: list[Piece], piece: Piece) -> bool:
    first, last = group[0], group[-1]
    near = piece.file == first.file and piece.position - _end(last) <= GAP
    return near and _end(piece) - first.position <= SPAN


def _end(piece: Piece) -> int:
    return piece.position + piece.size


class ReadAhead:
    """Fetches spans in the background. For one reading thread; pieces may be taken in any order."""

    def __init__(self, storage: Storage, spans: Sequence[Span]) -> None:
        self._storage, self._spans = storage, spans
        self._number = {(p.file, p.position): n for n, span in enumerate(spans) for p in span.pieces}
        self._uses = Counter(n for n, span in enumerate(spans) for _ in span.pieces)
        self._fetched: dict[int, Future[bytes]] = {}
        self._touched: set[int] = set()
        self._next = 0
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="resume")
        self._fetch_ahead()

    def take(self, piece: Piece) -> bytes | None:
        """The bytes of a piece; None when they were not expected (any more) or can't be had in this way."""
        number = self._number.get((piece.file, piece.position))
        if number is None or not self._uses[number]:
            return None
        self._touched.add(number)
        self._fetch(number)
        self._fetch_ahead()
        try:
            data = self._fetched[number].result()
        except StorageError:
            return None  # asked for alone, it will tell what is wrong with it
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._fetched[number]
        start = piece.position - self._spans[number].start
        return data[start : start + piece.size]

    def close(self) -> None:
        """Fetches nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetch_ahead(self) -> None:
        while self._next < len(self._spans) and len(self._fetched.keys() - self._touched) < AHEAD:
            self._fetch(self._next)
            self._next += 1

    def _fetch(self, number: int) -> None:
        if number not in self._fetched and self._uses[number]:
            span = self._spans[number]
            self._fetched[number] = self._pool.submit(self._storage.read, span.file, span.start, span.end)
