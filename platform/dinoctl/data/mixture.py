"""The order of a weighted mixture of datasets: still a formula of the step.

Mixed batches. Lanes are cut into slots of K consecutive steps. Every period of 16,384 slots gives each source exactly
its share, at places chosen by a keyed permutation; the permutation's value also says which of its runs the slot
reads. So which source, and how often it was read before, are known at any step without counting, and a slot stays one
range request.

Homogeneous batches (a share of the steps takes all samples from one source, as DINOv3's ImageNet batches do). Of every
1,024 steps an exact share is homogeneous, and their sources are dealt exactly over every 1,024 homogeneous steps (so a
weight below 1/1,024 gets none of them); each source has a stream of its own for them.

A source's stream is endless and covers all its samples exactly once in every epoch of that source.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dinoctl.data.errors import DataError
from dinoctl.data.feistel import Ids, keys_of, permute, round_keys
from dinoctl.data.order import EpochOrder, Picks, fitting_run, lanes_of

SLOTS = 1 << 14
STEPS = 1 << 10


class MixtureOrder:
    """The order of several sources, each (samples, weight).

    ``homogeneous`` is the share of steps whose batch comes from one source, chosen by weight.

    Raises:
        DataError: no source, an empty one, or a weight too small to be met (below 1 / 16,384 of the sum).
    """

    def __init__(
        self,
        sources: Sequence[tuple[int, float]],
        global_batch: int,
        seed: int,
        run_length: int = 16,
        homogeneous: float = 0.0,
    ) -> None:
        self.sources = [samples for samples, _ in sources]
        weights = _checked(sources, global_batch, run_length, homogeneous)
        self.global_batch, self.seed = global_batch, seed
        self.run_length = run_length = fitting_run(sum(self.sources), global_batch, run_length)
        self._slots = np.cumsum([0, *quotas(weights, SLOTS)])
        self._homogeneous = quotas(np.array([homogeneous, 1 - homogeneous]), STEPS)[0]
        self._steps = np.cumsum([0, *quotas(weights, STEPS)])
        self._mixed = [EpochOrder(n, 1, run_length, seed, f"mixed-{i}") for i, n in enumerate(self.sources)]
        self._pure = [EpochOrder(n, global_batch, 1, seed, f"pure-{i}") for i, n in enumerate(self.sources)]

    def batch(self, step: int) -> tuple[Ids, Ids]:
        """Source and sample of each lane, both of shape (global_batch,)."""
        picks = self.picks(step, lanes_of(self.global_batch, 0, 1))
        return picks.source, picks.sample

    def lanes(self, step: int, rank: int, world: int) -> tuple[Ids, Ids]:
        """Source and sample of each lane of a rank."""
        picks = self.picks(step, lanes_of(self.global_batch, rank, world))
        return picks.source, picks.sample

    def picks(self, step: int, lanes: Ids) -> Picks:
        """The samples of some lanes of the batch of a step."""
        period, place = divmod(step, STEPS)
        chosen = _chosen(self.seed, "homogeneous", period, STEPS, self._homogeneous)
        before = period * self._homogeneous + int(chosen[:place].sum())
        if chosen[place]:
            return self._from_one(before, lanes)
        return self._from_all(step - before, lanes)

    def block(self, step: int, count: int, lanes: Ids) -> Picks:
        """See `Order.block`; a step's source of a homogeneous batch follows from those before, so step by step."""
        rows = [self.picks(step + i, lanes) for i in range(count)]
        return Picks(*(np.stack(column) for column in zip(*rows, strict=True)))

    def check(self, samples: list[int]) -> None:
        """Raises `DataError` unless the order was made for datasets of these sizes."""
        if samples != self.sources:
            raise DataError(
                f"the order is one of {self.sources} samples, the data has {samples}; open the same datasets"
            )

    def _from_all(self, step: int, lanes: Ids) -> Picks:
        """The ``step``-th mixed batch."""
        time, within = divmod(step, self.run_length)
        period, place = np.divmod(time * self.global_batch + lanes, SLOTS)
        dealt = permute(place, SLOTS, keys_of(self.seed, "slots", period))
        source = np.searchsorted(self._slots, dealt, side="right") - 1
        run = period * np.diff(self._slots)[source] + dealt - self._slots[source]
        return self._read(self._mixed, source, run * self.run_length + within)

    def _from_one(self, count: int, lanes: Ids) -> Picks:
        """The ``count``-th homogeneous batch."""
        period, place = divmod(count, STEPS)
        dealt = permute(np.arange(place + 1), STEPS, round_keys(self.seed, "pure-source", period))
        sources = np.searchsorted(self._steps, dealt, side="right") - 1
        source = int(sources[-1])
        before = period * int(np.diff(self._steps)[source]) + int((sources[:-1] == source).sum())
        return self._read(self._pure, np.full_like(lanes, source), before * self.global_batch + lanes)

    def _read(self, orders: list[EpochOrder], source: Ids, position: Ids) -> Picks:
        """Positions of the sources' endless streams to samples."""
        epoch, inside = np.divmod(position, np.array(self.sources, dtype=np.int64)[source])
        sample = np.empty_like(position)
        for number in np.unique(source):
            here = source == number
            sample[here] = orders[number].at(epoch[here], inside[here])
        return Picks(source, sample, epoch)


def quotas(weights: NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers in proportion to the weights that sum to ``total`` (largest remainders)."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[largest] += 1
    return [int(count) for count in counts]


@lru_cache(maxsize=16)
def _chosen(seed: int, purpose: str, period: int, size: int, count: int) -> NDArray[np.bool_]:
    """``count`` of the ``size`` places of a period, shape (size,)."""
    return permute(np.arange(size), size, round_keys(seed, purpose, period)) < count


def _checked(
    sources: Sequence[tuple[int, float]], global_batch: int, run_length: int, homogeneous: float
) -> NDArray[np.float64]:
    if not sources or min(samples for samples, _ in sources) < 1 or min(global_batch, run_length) < 1:
        raise DataError("a mixture needs sources of at least one sample, and a batch and a run length of at least 1")
    if not 0 <= homogeneous <= 1:
        raise DataError(f"homogeneous {homogeneous} must lie between 0 and 1")
    weights = np.array([weight for _, weight in sources], dtype=np.float64)
    if weights.min() <= 0 or weights.min() / weights.sum() * SLOTS < 1:
        raise DataError(f"weights {weights.tolist()}: each must be at least 1/{SLOTS} of their sum")
    return weights
