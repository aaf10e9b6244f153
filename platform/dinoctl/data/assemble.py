"""Makes the batch of a step for one rank, into given memory. Runs in the training process or in a child.

Everything follows from (seed, step, lane): which samples, their crops, the masks. Where the recipe mixes resolutions,
each step draws one pair of sizes from (seed, step), the same for all ranks. A sample that cannot be read or
decoded is replaced by the next one of its lane (the lane's sample at step + 1, then step + 2, ...), so a replacement
too is the same at any number of workers and after any restart. No torch here: children start without it.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinoctl.data import keyed
from dinoctl.data.augment import Cropper, cropper_of
from dinoctl.data.dataset import Ahead, Dataset
from dinoctl.data.errors import ChangedError, DataError
from dinoctl.data.mask import masks
from dinoctl.data.order import Order, lanes_of
from dinoctl.data.reader.counts import ReadCounts
from dinoctl.data.reader.reader import Reader
from dinoctl.spec.crops import Crops
from dinoctl.spec.recipe import Masks
from dinoctl.spec.sources import Reading

_REPLACEMENTS = 16


class BadSample(NamedTuple):
    """A sample that could not be used: its id in the batch's numbering, and why."""

    sample_id: int
    reason: str


class Arrays(NamedTuple):
    """A batch of one rank, B lanes, as views of one block of memory. Crops are crop-major."""

    sample_ids: NDArray[np.int64]
    """(B,)"""
    global_crops: NDArray[np.uint8]
    """(2 B, 3, H, W)"""
    local_crops: NDArray[np.uint8]
    """(L B, 3, h, w)"""
    masks: NDArray[np.bool_]
    """(2 B, patches)"""


@dataclass(frozen=True)
class Layout:
    """Shapes of `Arrays`, and their places in memory."""

    lanes: int
    global_size: int
    local_count: int
    local_size: int
    patches: int

    @property
    def bytes(self) -> int:
        """Bytes of a batch, a multiple of 64 so that the next one is aligned."""
        return -(-sum(int(np.prod(shape)) * kind.itemsize for shape, kind in self._parts()) // 64) * 64

    def views(self, memory: memoryview) -> Arrays:
        """The arrays of a batch that lies in ``memory``."""
        parts, start = [], 0
        for shape, kind in self._parts():
            size = int(np.prod(shape))
            parts.append(np.frombuffer(memory, kind, size, start).reshape(shape))
            start += size * kind.itemsize
        return Arrays(*parts)

    def _parts(self) -> list[tuple[tuple[int, ...], np.dtype[np.generic]]]:
        lanes, whole, part = self.lanes, self.global_size, self.local_size
        byte = np.dtype(np.uint8)
        return [
            ((lanes,), np.dtype(np.int64)),
            ((2 * lanes, 3, whole, whole), byte),
            ((self.local_count * lanes, 3, part, part), byte),
            ((2 * lanes, self.patches), np.dtype(np.bool_)),
        ]


class _Pair(NamedTuple):
    """Crops at one pair of sizes."""

    crop: Cropper[Any]
    grid: tuple[int, int]
    layout: Layout

    @staticmethod
    def of(crops: Crops, lanes: int, patch_size: int) -> _Pair:
        size, local = crops.global_crops.size, crops.local_crops
        if size % patch_size:
            raise DataError(f"crops.global.size {size} is not a multiple of the patch size {patch_size}")
        side = size // patch_size
        return _Pair(cropper_of(crops), (side, side), Layout(lanes, size, local.count, local.size or 0, side * side))


class Made(NamedTuple):
    """What became of a batch, or of a part of it, beside its pixels."""

    bad: list[BadSample]
    """Samples that had to be replaced."""
    counts: ReadCounts
    """What reading took, since the process began."""


class Assembler:
    """Fills batches of rank ``rank`` of ``world``, or a part of their lanes (`part_of`). Picklable.

    ``reading``: how what lies on a bucket is read ahead; None reads each sample when its turn comes.
    ``readers``: ranks that share the requests allowed to a job, if more than ``world``.

    Raises:
        DataError: the settings do not fit together.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        crops: Crops,
        mask_spec: Masks,
        *,
        seed: int,
        rank: int,
        world: int,
        patch_size: int,
        reading: Reading | None = None,
        readers: int | None = None,
    ) -> None:
        self.datasets, self.order, self.seed = list(datasets), order, seed
        self.lanes = lanes_of(order.global_batch, rank, world)
        self._pairs = [_Pair.of(pair, len(self.lanes), patch_size) for pair in crops.pairs()]
        self._shares = np.cumsum([pair.weight for pair in crops.sizes or ()])
        self._masks = mask_spec
        self._offsets = np.cumsum([0, *(len(dataset) for dataset in datasets)])
        self._reading, self._readers = reading, readers or world
        self.remote = reading is not None and any(dataset.ranges() is not None for dataset in datasets)
        """Whether there is something to read ahead."""
        self._part = (0, 1)
        self._reader: Reader | None = None
        self._ahead: dict[int, Ahead] = {}

    def part_of(self, number: int, parts: int) -> Assembler:
        """One that fills lanes ``number``, ``number + parts``, ... only, so that a run stays with one process."""
        part = copy.copy(self)
        part._part = (number, parts)
        return part

    @property
    def bytes(self) -> int:
        """Bytes of a batch, at the largest sizes."""
        return max(pair.layout.bytes for pair in self._pairs)

    def layout(self, step: int) -> Layout:
        """Shapes of the batch of a step."""
        return self._pair(step).layout

    def _pair(self, step: int) -> _Pair:
        """The sizes of a step, drawn by weight."""
        if len(self._pairs) == 1:
            return self._pairs[0]
        place = keyed.rng(self.seed, "crop-sizes", step).random() * self._shares[-1]
        return self._pairs[min(int(np.searchsorted(self._shares, place, side="right")), len(self._pairs) - 1)]

    def fill(self, step: int, arrays: Arrays) -> Made:
        """Write the batch of a step.

        Raises:
            DataError: a lane found 16 bad samples in a row.
            ChangedError: the dataset is not the one that was opened.
            StorageError: the storage failed.
        """
        pair, lanes = self._pair(step), np.arange(self._part[0], len(self.lanes), self._part[1])
        reader = self._open_reader(lanes)
        if reader is not None:
            reader.at(step)
        rows = np.concatenate([lanes, lanes + len(self.lanes)])
        ids = np.concatenate([self.lanes[lanes], self.lanes[lanes] + self.order.global_batch])
        arrays.masks[rows] = masks(
            2 * self.order.global_batch, pair.grid, self._masks, seed=self.seed, step=step, rows=ids
        )
        bad: list[BadSample] = []
        picks = self.order.picks(step, self.lanes[lanes])
        for lane, source, sample, epoch in zip(lanes.tolist(), *(column.tolist() for column in picks), strict=True):
            image, source, sample, epoch = self._readable(pair.crop, step, lane, source, sample, epoch, bad)
            identity = self._identity(source, sample)
            arrays.sample_ids[lane] = identity
            pair.crop.into(image, _outputs(arrays, lane), seed=self.seed, epoch=epoch, sample_id=identity)
        return Made(bad, reader.counts() if reader is not None else ReadCounts())

    def close(self) -> None:
        """Lets the reader go; a second call does nothing."""
        if self._reader is not None:
            self._reader.close()
            self._reader, self._ahead = None, {}

    def _open_reader(self, lanes: NDArray[np.int64]) -> Reader | None:
        """Made when the first batch is: threads and connections belong to the process that reads."""
        if self._reader is None and self._reading is not None and self.remote:
            parts = self._part[1]
            share = (1 / parts, 1 / (self._readers * parts))
            self._reader = Reader(self.datasets, self.order, self.lanes[lanes], self._reading, share)
            self._ahead = {source: partial(self._reader.take, source) for source in range(len(self.datasets))}
        return self._reader

    def _readable(
        self, crop: Cropper[Any], step: int, lane: int, source: int, sample: int, epoch: int, bad: list[BadSample]
    ) -> tuple[Any, int, int, int]:
        """The first image of the lane from ``step`` on that can be read, and which it is."""
        for later in range(1, _REPLACEMENTS + 1):
            decode = partial(crop.open, seed=self.seed, epoch=epoch, sample_id=self._identity(source, sample))
            try:
                return self.datasets[source].decoded(sample, decode, self._ahead.get(source)), source, sample, epoch
            except ChangedError:
                raise
            except DataError as error:
                bad.append(BadSample(self._identity(source, sample), str(error)))
            picks = self.order.picks(step + later, self.lanes[lane : lane + 1])
            source, sample, epoch = (int(column[0]) for column in picks)
        raise DataError(f"{_REPLACEMENTS} samples in a row are unreadable, the last one: {bad[-1].reason}")

    def _identity(self, source: int, sample: int) -> int:
        """One number for a sample of a mixture: sources lie one behind the other."""
        return int(self._offsets[source]) + sample


def _outputs(arrays: Arrays, lane: int) -> list[NDArray[np.uint8]]:
    """Where the crops of a lane go: crops are crop-major."""
    count = len(arrays.sample_ids)
    return [*arrays.global_crops[lane::count], *arrays.local_crops[lane::count]]


def serve_batches(assembler: Assembler, descriptor: int, slots: int) -> Callable[[tuple[int, int]], Made]:
    """The loader's child: fills the slot it is told with the batch of the step it is told."""
    size = assembler.bytes
    memory = memoryview(mmap.mmap(descriptor, max(1, size * slots)))

    def serve(request: tuple[int, int]) -> Made:
        step, slot = request
        views = assembler.layout(step).views(memory[slot * size : (slot + 1) * size])
        return assembler.fill(step, views)

    return serve
