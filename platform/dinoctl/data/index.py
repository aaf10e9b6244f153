"""The offset index of a split: one row a sample, in shard order, then offset order.

The file is a NumPy ``.npy`` of `DTYPE` records, 32 bytes a sample, that is memory-mapped and never decoded: opening
costs the same for a thousand samples and for a billion, and what processes of a node touch they share. Behind the
array, where NumPy does not look, lies the CRC-32C (uint32, little-endian) of every 64 KiB of what comes before it.
``dataset.json`` holds the hash of these sums, so opening verifies them and no more; each block is compared with its sum
when it is first used. An index of up to `SMALL` bytes is verified whole at once. Keys are in a Parquet file of their
own, because hardly anybody asks for them.

Neighbours in the index are neighbours in a shard: one range read fetches a run. Datasets packed before this format
have all columns in one Parquet file and are opened by decoding it.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from dinoctl.data.errors import ChangedError, DataError
from dinoctl.data.manifest import SplitInfo
from dinoctl.data.node_cache import cached, drop, hold
from dinoctl.data.storage import Storage

DTYPE = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),  # of the image bytes in the shard
        ("length", "<i4"),
        ("crc32c", "<u4"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("label", "<i4"),  # -1: none
    ]
)
BLOCK = 2**16
"""Bytes that one checksum covers."""
SMALL = 2**26
"""Bytes up to which an index is verified whole when it is opened."""
_SAMPLED = 2**17
_TRIM = 2048
"""Looks after which touched pages are let go; each may have made 64 KiB resident."""


class Row(NamedTuple):
    """One sample of the index."""

    key: str
    shard: int
    offset: int
    length: int
    crc32c: int
    width: int
    height: int
    label: int


def header(rows: int) -> bytes:
    """What a ``.npy`` file of so many rows begins with; its length does not depend on their number."""
    sink = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(DTYPE), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(sink, about)
    return sink.getvalue()


class Blocks:
    """The bytes that rows lie in, compared with their checksums when they are first used."""

    def __init__(self, path: Path, origin: str | None, body: int, sums_sha256: str) -> None:
        """``body`` is the number of bytes before the sums; of a node's copy, ``origin`` is what it is a copy of.

        Raises `ChangedError` when the sums are not the right ones.
        """
        self._file = path.open("rb", buffering=0)
        if origin is not None:
            hold(self._file.fileno())
        self._path, self._origin, self._body = path, origin, body
        count = -(-body // BLOCK)
        sums = self._at(body, body + 4 * count)
        if hashlib.sha256(sums).hexdigest() != sums_sha256:
            raise self._changed()
        self._sums = np.frombuffer(sums, "<u4")
        self._seen = bytearray(count)

    def check(self, start: int, end: int) -> None:
        """Verify the blocks of bytes [start, end) that were not verified yet; raises `ChangedError`."""
        for block in range(start // BLOCK, -(-end // BLOCK)):
            if not self._seen[block]:
                # pread, not the mapping: what is looked at once must not become resident.
                if crc32c(self._at(block * BLOCK, min((block + 1) * BLOCK, self._body))) != self._sums[block]:
                    raise self._changed()
                self._seen[block] = 1

    def _at(self, start: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - start, start)

    def _changed(self) -> ChangedError:
        """What to say; a copy is removed, so that whoever comes next fetches another."""
        if self._origin is None:
            return differs(str(self._path))
        gone = "it was removed, so" if drop(self._path, self._file.fileno()) else "remove it, then"
        return ChangedError(
            f"{self._path}: this machine's copy of {self._origin} is damaged; {gone} the same command fetches it again "
            "(check the disk if it happens again)"
        )


class Index:
    """A split's index: records that lie in a mapped file or in memory."""

    def __init__(
        self, rows: NDArray[Any], keys: Keys, blocks: Blocks | None = None, mapping: mmap.mmap | None = None
    ) -> None:
        self._rows, self._keys, self._blocks, self._mapping = rows, keys, blocks, mapping
        self._head = len(header(0))
        self._looks = 0

    def __len__(self) -> int:
        return len(self._rows)

    def unchecked(self, name: str) -> NDArray[Any]:
        """A column, shape (samples,), as a view into the file: `check` the rows before you believe them."""
        column: NDArray[Any] = self._rows[name]
        return column

    def check(self, first: int, count: int = 1) -> None:
        """Verify that rows are what was packed; cheap where it was done before.

        Raises:
            ChangedError: they are not. It is thousands of samples that cannot be found, not one that is broken.
        """
        if self._blocks:
            start = self._head + first * DTYPE.itemsize
            self._blocks.check(start, start + count * DTYPE.itemsize)
        self._looks += 1
        if self._mapping and self._looks % _TRIM == 0:
            self._mapping.madvise(mmap.MADV_DONTNEED)  # they stay in the system's cache, and come back when touched

    def column(self, name: str) -> NDArray[Any]:
        """A column, shape (samples,), with all rows verified."""
        self.check(0, len(self))
        return self.unchecked(name)

    def starts(self, shards: int) -> NDArray[np.int64]:
        """The first row of each of so many shards, and behind them the number of rows, shape (shards + 1,).

        By bisection: `np.searchsorted` would copy the whole column out of the file.
        """
        column, numbers = self.unchecked("shard"), np.arange(shards + 1)
        low, high = np.zeros(shards + 1, np.int64), np.full(shards + 1, len(self), np.int64)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            before = np.zeros(shards + 1, bool)
            before[open_] = column[middle[open_]] < numbers[open_]
            low, high = np.where(open_ & before, middle + 1, low), np.where(open_ & ~before, middle, high)
        return low

    def some(self, name: str) -> NDArray[Any]:
        """The first 131,072 values of a column: packing shuffles, so they stand for all."""
        count = min(_SAMPLED, len(self))
        self.check(0, count)
        return self.unchecked(name)[:count]

    def keys(self) -> list[str]:
        """The keys of all samples."""
        return self._keys.read()


class Keys:
    """The keys of a split, read when they are asked for."""

    def __init__(self, storage: Storage, path: str, sha256: str) -> None:
        self._storage, self._path, self._sha256 = storage, path, sha256

    def read(self) -> list[str]:
        """All keys, in the order of the rows."""
        keys: list[str] = self.table("key").column(0).to_pylist()
        return keys

    def table(self, *columns: str) -> Any:
        """Columns of the Parquet file, verified."""
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

        data = self._storage.read(self._path)
        if hashlib.sha256(data).hexdigest() != self._sha256:
            raise differs(f"{self._storage.uri}/{self._path}")
        return pq.read_table(pa.BufferReader(data), columns=list(columns))


def open_index(storage: Storage, split: SplitInfo) -> Index:
    """Open the index of a split and verify it as far as the module says.

    On a bucket the file is fetched once a node, into its cache, and verified whole on the way.

    Raises:
        DataError: the file is not the one that was packed.
        StorageError: it cannot be read.
    """
    if split.index_sums_sha256 is None or split.index_bytes is None or split.keys is None or split.keys_sha256 is None:
        return _from_parquet(storage, split)
    keys = Keys(storage, split.keys, split.keys_sha256)
    if storage.size(split.index) != split.index_bytes:
        raise differs(f"{storage.uri}/{split.index}")
    path = storage.local_path(split.index)
    if path is not None:
        return _mapped(path, None, split, keys)
    origin = f"{storage.uri}/{split.index}"
    with suppress(ChangedError, FileNotFoundError):  # damaged after it was made, so we or another rank removed it
        return _mapped(cached(storage, split.index, split.index_sha256, split.index_bytes), origin, split, keys)
    return _mapped(cached(storage, split.index, split.index_sha256, split.index_bytes), origin, split, keys)


def _mapped(path: Path, origin: str | None, split: SplitInfo, keys: Keys) -> Index:
    head = len(header(0))
    body = head + split.samples * DTYPE.itemsize
    blocks = Blocks(path, origin, body, split.index_sums_sha256 or "")
    blocks.check(0, body if body <= SMALL else head)
    if not split.samples:
        return Index(np.empty(0, DTYPE), keys, blocks)
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), body, access=mmap.ACCESS_READ)
    return Index(np.frombuffer(mapping, DTYPE, split.samples, head), keys, blocks, mapping)


def _from_parquet(storage: Storage, split: SplitInfo) -> Index:
    """An index of the former format, with all columns in memory."""
    file = Keys(storage, split.index, split.index_sha256)
    rows = np.empty(split.samples, DTYPE)
    try:
        for name in DTYPE.names or ():
            rows[name] = file.table(name).column(0).to_numpy()
    except (ValueError, KeyError) as error:
        raise DataError(f"{storage.uri}/{split.index}: {error}; pack the dataset again") from error
    return Index(rows, file)


def differs(place: str) -> ChangedError:
    """What to say of a file that is not the one it was."""
    return ChangedError(f"{place}: differs from what was packed; restore the file or pack the dataset again")
