"""The offset index of a split: one row a sample, a Parquet file with the columns of `SCHEMA`.

The rows are in shard order, then offset order: consecutive samples lie side by side, one range read fetches a run.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from dinoctl.data.errors import DataError
from dinoctl.data.manifest import SplitInfo
from dinoctl.data.storage import Storage

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),  # of the image bytes in the shard
        ("length", pa.int32()),
        ("crc32c", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.int32()),  # -1: none
    ]
)


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


def encode(rows: list[Row]) -> bytes:
    """The rows as the bytes of a Parquet file."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), sink, compression="zstd", row_group_size=2**17)
    return sink.getvalue()


class Index:
    """A split's index, columns as numpy arrays.

    Local files are memory-mapped while they are decoded; a column is decoded when it is first used.
    """

    def __init__(self, table: Any, place: str) -> None:
        missing = [name for name in SCHEMA.names if name not in table.schema.names]
        if missing:
            raise DataError(f"{place}: column {missing[0]!r} is missing; pack the dataset again")
        self._file = table
        self._columns: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """A numeric column, shape (samples,), of the type in `SCHEMA`."""
        if name not in self._columns:
            self._columns[name] = self._file.read(columns=[name]).column(0).to_numpy()
        return self._columns[name]

    def some(self, name: str) -> NDArray[Any]:
        """The first 131,072 values of a numeric column: packing shuffles, so they stand for all."""
        if len(self) == 0:
            return self.column(name)
        values: NDArray[Any] = self._file.read_row_group(0, columns=[name]).column(0).to_numpy()
        return values

    def keys(self) -> list[str]:
        """The keys of all samples."""
        keys: list[str] = self._file.read(columns=["key"]).column(0).to_pylist()
        return keys


def open_index(storage: Storage, split: SplitInfo) -> Index:
    """Open and verify the index of a split.

    Raises:
        DataError: the file is not the one that was packed.
        StorageError: it cannot be read.
    """
    place = f"{storage.uri}/{split.index}"
    path = storage.local_path(split.index)
    data = pa.memory_map(str(path)).read_buffer() if path and path.exists() else pa.py_buffer(storage.read(split.index))
    if hashlib.sha256(data).hexdigest() != split.index_sha256:
        raise DataError(f"{place}: differs from what was packed; restore the file or pack the dataset again")
    return Index(pq.ParquetFile(pa.BufferReader(data)), place)
