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
        while len(rows) < HORIZON:
            picks = order.picks(step + len(rows), lanes)
            rows.append(_Row(picks.source.tolist(), picks.sample.tolist()))
        for lane in range(len(lanes)):
            dataset = datasets[rows[0].source[lane]]
            if covered[lane] > step or dataset is None:
                continue
            source, first = rows[0].source[lane], rows[0].sample[lane]
            extent = dataset.extent(first, _neighbours(rows, lane), most_bytes)
            covered[lane] = step + len(extent.lengths)
            yield Piece(source, first, extent, step)
        rows.popleft()
        step += 1


def _neighbours(rows: deque[_Row], lane: int) -> int:
    """How many consecutive samples the lane takes in consecutive steps, from the first row on."""
    source, first = rows[0].source[lane], rows[0].sample[lane]
    count = 0
    for row in rows:
        if row.source[lane] != source or row.sample[lane] != first + count:
            break
        count += 1
    return count
