"""Writing an index row by row, in bounded memory whatever the number of rows."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
from google_crc32c import value as crc32c

from dinoctl.data.errors import StorageError
from dinoctl.data.index import BLOCK, DTYPE, Row, header
from dinoctl.data.storage import Storage

_GROUP = 2**17  # keys of a row group
_SCHEMA = pa.schema([("key", pa.string())])


class Written(NamedTuple):
    """What the manifest says of an index."""

    samples: int
    bytes: int
    """Of the images."""
    index_bytes: int
    index_sha256: str
    sums_sha256: str
    keys_sha256: str


class IndexWriter(AbstractContextManager["IndexWriter"]):
    """Collects rows in temporary files without a name, which nothing can leave behind, then writes the real ones.

    Raises:
        StorageError: there is no room for them.
    """

    def __init__(self, scratch: Path | None) -> None:
        """``scratch`` is the directory of the temporary files; None: the system's."""
        self._scratch = scratch or Path(tempfile.gettempdir())
        self._rows, self._keys = self._temporary(), self._temporary()
        self._parquet = pq.ParquetWriter(self._keys, _SCHEMA, compression="zstd")
        self._pending: list[str] = []
        self._samples = self._bytes = 0
        self._write(header(0))

    def __exit__(self, *_: object) -> None:
        self._parquet.close()
        self._rows.close()
        self._keys.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        if rows:
            self.add_columns([row.key for row in rows], [row[1:] for row in rows])

    def add_columns(self, keys: list[str], records: Any) -> None:
        """Append keys and as many records: an array of `DTYPE` or tuples in its order."""
        table = np.asarray(records, DTYPE)
        self._samples += len(table)
        self._bytes += int(table["length"].sum(dtype=np.int64))
        self._write(table.tobytes())
        self._pending += keys
        while len(self._pending) >= _GROUP:
            self._flush(_GROUP)

    def relabel(self, numbers: Sequence[int]) -> None:
        """Replace each label n that is not -1 by ``numbers[n]``."""
        self._rows.flush()
        if not self._samples:
            return
        rows = np.memmap(self._rows, DTYPE, mode="r+", offset=len(header(0)), shape=(self._samples,))
        table = np.array([*numbers, -1], np.int32)  # the last one is also number -1
        for at in range(0, self._samples, _GROUP):
            rows["label"][at : at + _GROUP] = table[rows["label"][at : at + _GROUP]]
        rows.flush()

    def finish(self, storage: Storage, index: str, keys: str) -> Written:
        """Write both files below a storage; the rows' bytes depend on the rows alone."""
        if self._pending:
            self._flush(len(self._pending))
        self._parquet.close()
        self._rows.seek(0)
        self._write(header(self._samples))
        whole, sums = hashlib.sha256(), bytearray()
        storage.write_chunks(index, self._with_sums(whole, sums))
        named = hashlib.sha256()
        storage.write_chunks(keys, _hashed(self._keys, named))
        size = self._rows.seek(0, os.SEEK_END) + len(sums)
        sums_sha256 = hashlib.sha256(sums).hexdigest()
        return Written(self._samples, self._bytes, size, whole.hexdigest(), sums_sha256, named.hexdigest())

    def _with_sums(self, whole: Any, sums: bytearray) -> Iterator[bytes]:
        for chunk in _hashed(self._rows, whole):
            for at in range(0, len(chunk), BLOCK):
                sums += crc32c(chunk[at : at + BLOCK]).to_bytes(4, "little")
            yield chunk
        whole.update(sums)
        yield bytes(sums)

    def _flush(self, count: int) -> None:
        keys, self._pending = self._pending[:count], self._pending[count:]
        self._guarded(lambda: self._parquet.write_table(pa.table([pa.array(keys, pa.string())], schema=_SCHEMA)))

    def _write(self, data: bytes) -> None:
        def write() -> None:
            self._rows.write(data)
            self._rows.flush()

        self._guarded(write)

    def _temporary(self) -> BinaryIO:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._scratch)

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
            raise StorageError(
                f"cannot write the index's rows in {self._scratch}: {reason}; make room there (32 bytes a sample, and "
                "its name), then run again"
            ) from error


def _hashed(file: BinaryIO, state: Any) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(64 * BLOCK):
        state.update(chunk)
        yield chunk
