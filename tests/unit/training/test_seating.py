"""Which rank asks the teacher about which image, and how many ranks a student gets."""

from __future__ import annotations

import itertools

import pytest

from dinoctl.spec.shares import divide
from dinoctl.training.seating import Seating


@pytest.mark.parametrize("batch", [4, 12, 24])
def test_every_image_is_asked_about_once_and_evenly(batch: int) -> None:
    sizes = [n for n in range(1, 7) if batch % n == 0]
    for ranks in itertools.product(sizes, repeat=3):
        seating = Seating(dict(zip("abc", ranks, strict=True)), batch)
        load = [seating.asks.count(rank) for rank in range(seating.world)]
        assert sum(load) == batch
        assert max(load) - min(load) <= 1, ranks
        assert all(lane in seating.lanes(rank) for lane, rank in enumerate(seating.asks))
        for members in seating.members.values():
            assert sorted(lane for rank in members for lane in seating.lanes(rank)) == list(range(batch))


def test_ranks_that_do_not_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="12 images do not divide among the 5 ranks of student a"):
        Seating({"a": 5}, 12)


def test_the_division_with_the_shortest_step() -> None:
    costs = {"s": 1.0, "b": 3.0, "l": 8.0}
    assert divide(costs, 12, 48, {}) == {"s": 1, "b": 3, "l": 8}
    assert divide(costs, 12, 48, {"s": 4}) == {"s": 4, "b": 2, "l": 6}
    assert divide(costs, 2, 48, {}) is None
    assert divide({"a": 1.0, "b": 1.0}, 9, 4, {}) is None
    for workers in range(2, 9):
        found = divide({"a": 1.0, "b": 2.5}, workers, 24, {})
        options = [(a, workers - a) for a in range(1, workers) if 24 % a == 0 and 24 % (workers - a) == 0]
        best = min((max(1 / a, 2.5 / b) for a, b in options), default=None)
        assert best == (None if found is None else max(1 / found["a"], 2.5 / found["b"]))
