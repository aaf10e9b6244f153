"""Several students, one teacher: which rank belongs to which student, and which rank asks the teacher about an image.

Student i has n_i of W ranks, and each of its ranks the lanes j, j + n_i, ... of the same global batch B. So every image
is with one rank of every student; the teacher sees it once, on one of these ranks, and each rank asks about some B / W
of its own images, the rest is sent (``training.shared_teacher``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Seating:
    """``ranks``: student -> number of ranks, in the order in which the ranks are handed out.

    Raises ValueError where a number of ranks does not divide ``global_batch``.
    """

    ranks: Mapping[str, int]
    global_batch: int

    def __post_init__(self) -> None:
        for name, count in self.ranks.items():
            if count < 1 or self.global_batch % count:
                raise ValueError(
                    f"{self.global_batch} images do not divide among the {count} ranks of student {name}; "
                    "set globalBatch or ranks so that they do"
                )

    @property
    def world(self) -> int:
        """Number of ranks."""
        return sum(self.ranks.values())

    @cached_property
    def members(self) -> dict[str, list[int]]:
        """The ranks of each student, ascending."""
        found, start = {}, 0
        for name, count in self.ranks.items():
            found[name] = list(range(start, start + count))
            start += count
        return found

    def student(self, rank: int) -> str:
        """Whose rank it is."""
        return next(name for name, ranks in self.members.items() if rank in ranks)

    def lanes(self, rank: int) -> range:
        """The images of a rank, as places in the global batch; the same as those of a job of its own."""
        ranks = self.members[self.student(rank)]
        return range(rank - ranks[0], self.global_batch, len(ranks))

    @cached_property
    def asks(self) -> tuple[int, ...]:
        """For every lane the rank that asks the teacher about it: one that has the image, loads as even as can be."""
        load = [0] * self.world
        chosen = []
        for lane in range(self.global_batch):
            holders = [ranks[lane % len(ranks)] for ranks in self.members.values()]
            rank = min(holders, key=lambda r: load[r])
            load[rank] += 1
            chosen.append(rank)
        return _evened(chosen, self.members, self.world)


def _evened(chosen: list[int], members: Mapping[str, list[int]], world: int) -> tuple[int, ...]:
    """Hands lanes on along chains of ranks from one with two more than another, until there is none."""
    load = [chosen.count(rank) for rank in range(world)]
    while True:
        source = max(range(world), key=lambda r: load[r])
        path = _path(source, chosen, members, load)
        if not path:
            return tuple(chosen)
        for lane, rank in path:
            chosen[lane] = rank
        load = [chosen.count(rank) for rank in range(world)]


def _path(source: int, chosen: list[int], members: Mapping[str, list[int]], load: list[int]) -> list[tuple[int, int]]:
    """Moves (lane, new rank) that take one image from ``source`` to a rank with at least two fewer."""
    before: dict[int, tuple[int, int]] = {}
    queue, seen = [source], {source}
    for rank in queue:
        if load[rank] <= load[source] - 2:
            moves = []
            while rank != source:
                lane, former = before[rank]
                moves.append((lane, rank))
                rank = former
            return moves
        for lane in (lane for lane, asking in enumerate(chosen) if asking == rank):
            for other in (ranks[lane % len(ranks)] for ranks in members.values()):
                if other not in seen:
                    seen.add(other)
                    before[other] = (lane, rank)
                    queue.append(other)
    return []
