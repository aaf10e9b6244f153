"""What a reader will need, in the order in which it will need it, neighbours in one piece.

The order is a formula, so the samples of steps to come are known. A lane that takes neighbours of one shard in
consecutive steps (a run, see `order`) gets them in one piece, which is one range request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dinoctl.data.dataset import Dataset, Extent
from dinoctl.data.feistel import Ids
from dinoctl.data.order import Order

HORIZON = 64
"""Steps that are looked through for neighbours; a longer run is read in several pieces."""
_ROWS = 64  # steps whose samples are computed together


def most_bytes_of(memory: int, lanes: int) -> int:
    """Bytes that a piece may have: lanes are at staggered places of theirs, so half the memory is for what comes."""
    return max(memory // max(lanes, 2), 1)


class Piece(NamedTuple):
    """Samples ``first`` and following of a source, side by side in one shard, and the step that needs the first."""

    source: int
    first: int
    extent: Extent
    step: int

    @property
    def bytes(self) -> int:
        """Of its images alone."""
        return sum(self.extent.lengths)


class _Row(NamedTuple):
    source: list[int]
    sample: list[int]


def pieces(
    order: Order, datasets: Sequence[Dataset | None], lanes: Ids, start: int, most_bytes: int
) -> Iterator[Piece]:
    """All pieces of some lanes from step ``start`` on, without end, in the order of the steps that need them.

    ``None`` stands for a source that is read in another way. A piece has at most ``most_bytes``, or a single sample.
    """
    rows: deque[_Row] = deque()
    covered = [start] * len(lanes)
    step = start
    while True:
        if len(rows) < HORIZON:
            picks = order.block(step + len(rows), _ROWS, lanes)
            rows.extend(map(_Row, picks.source.tolist(), picks.sample.tolist()))
        for lane in range(len(lanes)):
            dataset = datasets[rows[0].source[lane]]
            if covered[lane] > step or dataset is None:
                continue
            source, first = rows[0].source[lane], rows[0].sample[lane]
            extent = _extent(dataset, first, _neighbours(rows, lane), most_bytes)
            covered[lane] = step + len(extent.lengths)
            yield Piece(source, first, extent, step)
        rows.popleft()
        step += 1


def _extent(dataset: Dataset, first: int, count: int, most_bytes: int) -> Extent:
    """Of ``count`` samples those that one piece takes: where bytes are short, an even share of them, no crumbs."""
    extent = dataset.extent(first, count, most_bytes)
    fitting = len(extent.lengths)
    if fitting == count or sum(extent.lengths) * (fitting + 1) <= most_bytes * fitting:  # all, or the shard ends there
        return extent
    return dataset.extent(first, -(-count // -(-count // fitting)), most_bytes)


def _neighbours(rows: deque[_Row], lane: int) -> int:
    """How many consecutive samples the lane takes in consecutive steps, from the first row on."""
    source, first = rows[0].source[lane], rows[0].sample[lane]
    count = 0
    for row in rows:
        if count == HORIZON or row.source[lane] != source or row.sample[lane] != first + count:
            break
        count += 1
    return count
