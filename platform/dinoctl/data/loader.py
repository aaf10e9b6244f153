"""The training loader: an endless iterator of batches from a given step on.

With ``workers=0`` batches are made when they are asked for. Else child processes write into memory shared with the
trainer, a bounded number of batches ahead: worker w of n makes steps start + w, start + w + n, ..., or, where data lies
on a bucket, lanes w, w + n, ... of every step, so that a run of neighbouring samples is one process's and one request.
What a batch holds depends on neither.

Processes, not threads: on small images nearly all time is Python's own, and two threads made 0.55
times the images of one (digits, two 16-pixel and four 8-pixel crops, two cores).
"""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dinoctl.data.assemble import Arrays, Assembler, BadSample, Made, serve_batches
from dinoctl.data.batch import Batch, to_batch
from dinoctl.data.children import Child
from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError
from dinoctl.data.order import Order
from dinoctl.data.reader.counts import ReadCounts, total
from dinoctl.spec.crops import Crops
from dinoctl.spec.recipe import Masks
from dinoctl.spec.sources import Reading

_READING = Reading()


@dataclass(frozen=True)
class LoaderStats:
    """What a loader has done so far."""

    images: int
    """Samples handed out."""
    wait_seconds: float
    """Time the trainer spent in ``next``."""
    quarantined: tuple[int, ...]
    """Ids of samples that could not be used, in the order of discovery."""
    read: ReadCounts
    """What reading ahead from a bucket took, also for batches that were not handed out yet."""

    def metrics(self) -> dict[str, float]:
        """Under their names in the log; what reading took only where something was read ahead."""
        counts = {"data/quarantined": float(len(self.quarantined))}
        if self.read.requests or self.read.cache_hits:
            counts |= {f"data/{name}": float(count) for name, count in self.read._asdict().items()}
        return counts


class TrainLoader:
    """Iterator of `Batch` for one rank; close it, or use it in a ``with`` statement.

    ``prefetch`` is the number of batches made ahead over all workers. ``max_bad_rate`` is the share of the samples that
    may be unusable before the job stops. ``reading`` is how data on a bucket is read ahead; None: not at all.
    ``readers``: ranks of the job, if they are more than ``world`` (several students).

    Raises:
        DataError: settings that do not fit together; from ``next``: too many unusable samples.
        StorageError: from ``next``: the storage failed.
        ChildDied: from ``next``: a worker was killed.
    """

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        order: Order,
        crops: Crops,
        masks: Masks,
        *,
        seed: int,
        patch_size: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        workers: int = 0,
        prefetch: int = 4,
        max_bad_rate: float = 1e-4,
        reading: Reading | None = _READING,
        readers: int | None = None,
    ) -> None:
        parts = [datasets] if isinstance(datasets, Dataset) else list(datasets)
        order.check([len(part) for part in parts])
        assembler = Assembler(
            parts,
            order,
            crops,
            masks,
            seed=seed,
            rank=rank,
            world=world,
            patch_size=patch_size,
            reading=reading,
            readers=readers,
        )
        self._step = start_step
        self._lanes = len(assembler.lanes)
        self._samples = sum(len(part) for part in parts)
        self._max_bad_rate = max_bad_rate
        self._bad: dict[int, str] = {}
        self._images, self._waited = 0, 0.0
        self._maker: _Maker = _Workers(assembler, start_step, workers, prefetch) if workers else _Here(assembler)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        arrays, bad = self._maker.make(self._step)
        self._quarantine(bad)
        batch = to_batch(self._step, arrays)
        self._step += 1
        self._images += self._lanes
        self._waited += time.perf_counter() - began
        return batch

    def stats(self) -> LoaderStats:
        """Counts since the start."""
        return LoaderStats(self._images, self._waited, tuple(self._bad), self._maker.counts())

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._maker.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_maker"):
            self._maker.close()

    def _quarantine(self, bad: list[BadSample]) -> None:
        for sample in bad:
            self._bad.setdefault(sample.sample_id, sample.reason)
        if len(self._bad) > self._max_bad_rate * self._samples:
            last = next(reversed(self._bad.values()))
            raise DataError(
                f"{len(self._bad)} of {self._samples} samples are unusable, above maxBadRate {self._max_bad_rate:g}; "
                f"the last one: {last}; pack the dataset again or raise data.maxBadRate"
            )


class _Maker(Protocol):
    def make(self, step: int) -> tuple[Arrays, list[BadSample]]: ...

    def counts(self) -> ReadCounts: ...

    def close(self) -> None: ...


class _Here:
    """Makes batches in this process."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler, self._counts = assembler, ReadCounts()

    def make(self, step: int) -> tuple[Arrays, list[BadSample]]:
        layout = self._assembler.layout(step)
        arrays = layout.views(memoryview(bytearray(layout.bytes)))
        bad, self._counts = self._assembler.fill(step, arrays)
        return arrays, bad

    def counts(self) -> ReadCounts:
        return self._counts

    def close(self) -> None:
        self._assembler.close()


class _Workers:
    """Child processes that fill rings of batches in shared memory. Batches must be asked for in order.

    Each has a ring of its own, or, where runs are to stay together, all share one (as many as there are lanes do).
    """

    def __init__(self, assembler: Assembler, start: int, workers: int, prefetch: int) -> None:
        self._layout = assembler.layout
        parts = min(workers, len(assembler.lanes)) if assembler.remote else 1
        rings = 1 if assembler.remote else workers
        slots = max(1, -(-prefetch // rings))
        self._rings: deque[_Ring] = deque(_Ring(assembler, slots, parts) for _ in range(rings))
        self._next = start
        for _ in range(slots):
            for ring in self._rings:
                self._request(ring)

    def make(self, step: int) -> tuple[Arrays, list[BadSample]]:
        """The batch of the next step; its place in the ring is used again at once."""
        if not self._rings:
            raise RuntimeError("the loader is closed")
        ring = self._rings[0]
        memory, bad = ring.receive(step)
        self._rings.rotate(-1)
        self._request(ring)
        return self._layout(step).views(memory), bad

    def counts(self) -> ReadCounts:
        return total(ring.counts() for ring in self._rings)

    def close(self) -> None:
        while self._rings:
            self._rings.popleft().close()

    def _request(self, ring: _Ring) -> None:
        ring.request(self._next)
        self._next += 1


class _Ring:
    """The memory of some batches, and the children that write to it, each its part of the lanes."""

    def __init__(self, assembler: Assembler, slots: int, parts: int) -> None:
        self._size, self._slots = assembler.bytes, slots
        # Anonymous memory: not bounded by a container's small /dev/shm, and gone with the last process that holds it.
        descriptor = os.memfd_create("dinoctl-batches")
        try:
            os.ftruncate(descriptor, max(1, self._size * slots))
            self._memory = memoryview(mmap.mmap(descriptor, max(1, self._size * slots)))
            self._children = [
                Child(serve_batches, assembler.part_of(i, parts), descriptor, slots, descriptors=(descriptor,))
                for i in range(parts)
            ]
        finally:
            os.close(descriptor)
        self._asked: deque[tuple[int, int]] = deque()
        self._count = 0
        self._counts = [ReadCounts()] * parts

    def request(self, step: int) -> None:
        """Have a batch made, in the slot that was read longest ago."""
        self._asked.append((step, self._count % self._slots))
        self._count += 1
        for child in self._children:
            child.send(self._asked[-1])

    def receive(self, step: int) -> tuple[memoryview, list[BadSample]]:
        """A copy of the oldest batch that was requested, which must be that of ``step``."""
        made: list[Made] = [child.receive() for child in self._children]
        self._counts = [part.counts for part in made]
        asked, slot = self._asked.popleft()
        if asked != step:
            raise RuntimeError(f"batches must be taken in order: step {step} was asked for, {asked} is next")
        bad = [sample for part in made for sample in part.bad]
        return memoryview(bytearray(self._memory[slot * self._size : (slot + 1) * self._size])), bad

    def counts(self) -> ReadCounts:
        """Of all children, as of the batches received."""
        return total(self._counts)

    def close(self) -> None:
        for child in self._children:
            child.close()
