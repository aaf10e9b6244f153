"""An optional cache on a node's disk, shared by its processes without any lock.

Below ``path`` each dataset has a directory named by its content's hash, with a sparse copy of each shard that belongs
in the cache: a sample lies where it lies in the shard. Whether it is there is what its CRC says, so a hole, a write
that was killed half-way or a broken disk are all the same: not there. Writers of one place write the same bytes.

What belongs in the cache is fixed: the first samples of each dataset, as many as fit the budget. Epochs go through all
samples in ever new order, and of what is read like that no replacement policy keeps more than one that keeps the same
part for good; and this one needs to know nothing of what other processes did.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google_crc32c import value as crc32c

from dinoctl.data.dataset import Dataset, Extent

_MARK = "used"  # in a dataset's directory: when it was last opened


def _name(path: str) -> str:
    return path.replace("/", "_")


class DiskCache:
    """The cache of some datasets below ``path``, at most ``budget`` bytes. Safe to use from several threads.

    Never fails: on a full disk or a path that cannot be used it says so once and keeps nothing more. Other processes,
    other jobs' too, evict and trim at the same time, so whatever is not there any more is no reason to stop.
    """

    def __init__(self, path: str, budget: int, datasets: Mapping[int, Dataset]) -> None:
        self.failures = 0
        """Writes and reads that the disk refused."""
        self._root = Path(path).expanduser()
        self._homes = {i: self._root / one.hash[:16] / one.split for i, one in datasets.items()}
        total = sum(one.info.bytes for one in datasets.values())
        shares = {i: budget * one.info.bytes // max(total, 1) for i, one in datasets.items()}
        self._parts = {i: _fitting(one, shares[i]) for i, one in datasets.items()}
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            for source, home in self._homes.items():
                with suppress(FileNotFoundError, FileExistsError):  # the latter: gone while mkdir looked at it
                    home.mkdir(parents=True, exist_ok=True)
                    (home.parent / _MARK).touch()
                    _trim(home, self._parts[source].ends)
            self._evict(budget)
        except OSError as error:
            self._failed(error)

    def read(self, source: int, first: int, extent: Extent) -> list[bytes | None]:
        """The samples from ``first`` on, those that are there."""
        count = len(extent.lengths)
        held = min(max(self._parts[source].samples - first, 0), count) if not self.failures else 0
        found: list[bytes | None] = [None] * count
        if not held:
            return found
        start, end = extent.offsets[0], extent.offsets[held - 1] + extent.lengths[held - 1]
        try:
            descriptor = os.open(self._file(source, extent.path), os.O_RDONLY)
        except FileNotFoundError:
            return found
        except OSError as error:
            self._failed(error)
            return found
        try:
            data = memoryview(os.pread(descriptor, end - start, start))
        except OSError as error:
            self._failed(error)
            return found
        finally:
            os.close(descriptor)
        for i in range(held):
            at = extent.offsets[i] - start
            sample = bytes(data[at : at + extent.lengths[i]])
            found[i] = sample if len(sample) == extent.lengths[i] and crc32c(sample) == extent.crcs[i] else None
        return found

    def write(self, source: int, first: int, extent: Extent, samples: Sequence[bytes | None]) -> None:
        """Keeps verified samples, those from ``first`` on that are not None and belong here."""
        fresh = [i for i, data in enumerate(samples) if data is not None and first + i < self._parts[source].samples]
        if self.failures or not fresh:
            return
        try:
            descriptor = os.open(self._file(source, extent.path), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                for i in fresh:
                    os.pwrite(descriptor, samples[i] or b"", extent.offsets[i])
            finally:
                os.close(descriptor)
        except FileNotFoundError:  # another job's eviction: it holds the place now
            return
        except OSError as error:
            self._failed(error)

    def _file(self, source: int, path: str) -> Path:
        return self._homes[source] / _name(path)

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        if self.failures == 1:
            reason = error.strerror or str(error)
            sys.stderr.write(f"warning: the cache {self._root} can't be used ({reason}); reading goes on without it\n")

    def _evict(self, budget: int) -> None:
        """Other datasets' directories, those not opened for longest first, until theirs and what ours may take fit."""
        ours = {home.parent for home in self._homes.values()}
        others: list[tuple[float, Path]] = []
        for mark in self._root.glob(f"*/{_MARK}"):
            with suppress(FileNotFoundError):
                if mark.parent not in ours:
                    others.append((mark.stat().st_mtime, mark.parent))
        sizes = {home: _bytes_below(home) for _, home in others}
        used = sum(part.bytes for part in self._parts.values()) + sum(sizes.values())
        for _, home in sorted(others):
            if used <= budget:
                return
            shutil.rmtree(home, ignore_errors=True)
            used -= sizes[home]


class _Part(NamedTuple):
    """What of a dataset belongs in the cache."""

    samples: int
    bytes: int
    ends: dict[str, int]
    """For each file of the cache, the byte at which it may end."""


def _fitting(dataset: Dataset, budget: int) -> _Part:
    """The first samples, as many as fit ``budget`` bytes with what lies between them."""
    starts, used = dataset.starts().tolist(), 0
    ends: dict[str, int] = {}
    for number, shard in enumerate(dataset.info.shards):
        first, count = starts[number], starts[number + 1] - starts[number]
        if used + shard.bytes > budget:
            byte_ends = dataset.ends(first, count)
            more = int(np.searchsorted(byte_ends, budget - used, side="right"))
            if more:
                ends[_name(shard.path)] = end = int(byte_ends[more - 1])
                used += end
            return _Part(first + more, used, ends)
        ends[_name(shard.path)] = shard.bytes
        used += shard.bytes
    return _Part(len(dataset), used, ends)


def _bytes_below(home: Path) -> int:
    """Blocks that files take: sparse files are larger than what they hold."""
    blocks = 0
    for folder, _, names in os.walk(home):  # which passes over folders that vanish
        for name in names:
            with suppress(FileNotFoundError):
                blocks += Path(folder, name).stat().st_blocks
    return blocks * 512


def _trim(home: Path, names: dict[str, int]) -> None:
    """Removes what a larger budget has left: whole files, and the ends of files; ``names`` says what each may hold."""
    for path in home.iterdir():
        end = names.get(path.name, 0)
        with suppress(FileNotFoundError):
            if not end:
                path.unlink()
            elif path.stat().st_size > end:
                os.truncate(path, end)
