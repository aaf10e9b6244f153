"""Which samples make up the batch of a step: a formula, not a list.

The samples of all epochs form one stream; step t takes positions t B to (t + 1) B - 1 of it, lane g the g-th of them.
Each epoch is N consecutive positions and covers every sample exactly once, whatever N and B are; a batch may hold
the end of one epoch and the beginning of the next.

Inside an epoch samples are read in *runs* of K neighbours, because one range request for K samples is K times cheaper.
Runs are dealt to lanes by a keyed permutation: a lane emits one run's samples in K consecutive steps, so all samples
of a batch come from different runs. Lanes begin at staggered places in their runs, so that requests do not come in
bursts. What does not fill whole rounds of B runs comes last in the epoch, permuted one by one.

Nothing here knows the number of processes: rank r of W takes lanes r, r + W, ... of the batch. The state is the step.

The price of runs is that K consecutive steps draw from the same B runs; packing shuffles samples over shards, so
neighbours are random companions, and each epoch cuts the runs at another place. ``run_length=1`` is a full permutation.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from dinoctl.data.errors import DataError
from dinoctl.data.feistel import Ids, keys_of, permute

_ROUNDS = 16
"""An epoch has at least this many rounds of B runs; shorter data gets shorter runs."""


class Picks(NamedTuple):
    """Samples for some lanes of a step; arrays of shape (lanes,), int64."""

    source: Ids
    """Which dataset; all zero unless it is a mixture."""
    sample: Ids
    """Number of the sample in its dataset."""
    epoch: Ids
    """How often its dataset was gone through before; keys the augmentation."""


class Order(Protocol):
    """What a loader needs to know of an order."""

    global_batch: int

    def picks(self, step: int, lanes: Ids) -> Picks:
        """The samples of some lanes of the batch of a step."""
        ...

    def block(self, step: int, count: int, lanes: Ids) -> Picks:
        """Those of ``count`` steps from ``step`` on, in arrays of shape (count, lanes): one by one takes far longer."""
        ...

    def check(self, samples: list[int]) -> None:
        """Raises `DataError` unless the order was made for datasets of these sizes."""
        ...


def lanes_of(global_batch: int, rank: int, world: int) -> Ids:
    """Lanes of a rank: rank, rank + world, ...

    Raises:
        DataError: there are fewer lanes than ranks.
    """
    if world > global_batch:
        raise DataError(
            f"globalBatch {global_batch} is smaller than the number of workers {world}; raise it or use fewer"
        )
    return np.arange(rank, global_batch, world, dtype=np.int64)


class EpochOrder:
    """The order inside one epoch: an exact cover of ``samples`` by positions 0 to samples - 1."""

    def __init__(self, samples: int, lanes: int, run_length: int, seed: int, purpose: str = "order") -> None:
        self.samples, self.lanes, self.run = samples, lanes, run_length
        self._seed, self._purpose = seed, purpose
        self._runs = samples // run_length
        self._rounds = self._runs // lanes
        self._body = self._rounds * lanes * run_length  # positions before the tail

    def at(self, epochs: Ids, positions: Ids) -> Ids:
        """Sample numbers at positions of epochs; all of shape (n,)."""
        body = positions < self._body
        virtual = np.empty_like(positions)
        virtual[body] = self._in_rounds(epochs[body], positions[body])
        virtual[~body] = self._in_tail(epochs[~body], positions[~body] - self._body)
        # Runs are cut at another place in each epoch: neighbours change, and the stub is not always the same samples.
        shift = keys_of(self._seed, f"{self._purpose}-shift", epochs)[0] % np.uint64(self.samples)
        shifted: Ids = (virtual + shift.astype(np.int64)) % self.samples
        return shifted

    def _in_rounds(self, epochs: Ids, positions: Ids) -> Ids:
        if not positions.size:
            return positions
        lane, place = positions % self.lanes, positions // self.lanes
        place = (place + lane % self.run) % (self._rounds * self.run)
        return self._dealt(epochs, place // self.run * self.lanes + lane) * self.run + place % self.run

    def _in_tail(self, epochs: Ids, positions: Ids) -> Ids:
        """Runs that fill no round, and the samples that fill no run."""
        if not positions.size:
            return positions
        keys = keys_of(self._seed, f"{self._purpose}-tail", epochs)
        place = permute(positions, self.samples - self._body, keys) + self._body
        number, within = np.divmod(place, self.run)
        whole = number < self._runs
        if whole.any():
            number[whole] = self._dealt(epochs[whole], number[whole])
        return number * self.run + within

    def _dealt(self, epochs: Ids, numbers: Ids) -> Ids:
        """The runs that are dealt to places."""
        return permute(numbers, self._runs, keys_of(self._seed, self._purpose, epochs))


class SampleOrder:
    """The order of one dataset.

    Runs are halved until an epoch holds at least 16 rounds of ``global_batch`` runs; small data sets end at runs of
    one sample, a full permutation.

    Raises:
        DataError: no samples, or a batch or run length below one.
    """

    def __init__(self, samples: int, global_batch: int, seed: int, run_length: int = 16) -> None:
        if min(samples, global_batch, run_length) < 1:
            raise DataError(
                f"samples {samples}, globalBatch {global_batch} and runLength {run_length} must be at least 1"
            )
        self.samples = samples
        self.global_batch = global_batch
        self.seed = seed
        self.run_length = fitting_run(samples, global_batch, run_length)
        self._epochs = EpochOrder(samples, global_batch, self.run_length, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every sample has been seen: samples / global_batch, rounded up."""
        return -(-self.samples // self.global_batch)

    def epoch_of(self, step: int) -> int:
        """Epoch of the first sample of a step."""
        return step * self.global_batch // self.samples

    def batch(self, step: int) -> Ids:
        """Samples of the whole batch, shape (global_batch,)."""
        return self.picks(step, lanes_of(self.global_batch, 0, 1)).sample

    def lanes(self, step: int, rank: int, world: int) -> Ids:
        """Samples of one rank, shape (its lanes,)."""
        return self.picks(step, lanes_of(self.global_batch, rank, world)).sample

    def picks(self, step: int, lanes: Ids) -> Picks:
        """The samples of some lanes of the batch of a step."""
        return Picks(*(column[0] for column in self.block(step, 1, lanes)))

    def block(self, step: int, count: int, lanes: Ids) -> Picks:
        """See `Order.block`."""
        places = (np.arange(step, step + count)[:, None] * self.global_batch + lanes).ravel()
        epoch, position = np.divmod(places, self.samples)
        sample = self._epochs.at(epoch, position)
        shape = (count, len(lanes))
        return Picks(np.zeros(shape, np.int64), sample.reshape(shape), epoch.reshape(shape))

    def check(self, samples: list[int]) -> None:
        """Raises `DataError` unless the order was made for a dataset of this size."""
        if samples != [self.samples]:
            raise DataError(
                f"the order is one of {self.samples} samples, the data has {samples}; open the same dataset"
            )


def fitting_run(samples: int, lanes: int, run_length: int) -> int:
    """``run_length``, halved until an epoch holds enough rounds."""
    while run_length > 1 and run_length * lanes * _ROUNDS > samples:
        run_length //= 2
    return run_length
