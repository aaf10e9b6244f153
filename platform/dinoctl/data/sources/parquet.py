"""Parquet files with image bytes: one file or a directory (prefix) of them.

The image column is ``image`` or ``bytes``: binary, or Hugging Face's struct of ``bytes`` and ``path``. An optional
``label`` column holds integers, or names that are numbered in sorted order. Rows are read a row group at a time, so
packing keeps their order.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.sources.base import SourceItem
from dinoctl.data.storage import Storage, open_storage
from dinoctl.data.storage_file import StorageFile

_COLUMNS = ("image", "bytes")


class Parquet:
    """All rows of all files, in file-name and row order."""

    sequential = True

    def __init__(self, uri: str) -> None:
        self._storage, self._names = _files(uri)
        self._files = [_open(self._storage, name) for name in self._names]
        self._column = _image_column(self._files[0], f"{self._storage.uri}/{self._names[0]}")
        self.classes = _classes(self._files)

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self._files)

    def __iter__(self) -> Iterator[SourceItem]:
        reader = RowReader(self._storage, self._column)
        for name, file in zip(self._names, self._files, strict=True):
            labels = _labels(file, self.classes)
            stem = str(PurePosixPath(name).with_suffix("")).replace(".", "_")
            for row, (group, within, size) in enumerate(_rows(file)):
                path = f"{name}#{group}:{within}"
                yield SourceItem(f"{stem}-{row:08d}", "", labels[row] if labels else None, size, path, reader)


class RowReader:
    """Reads image bytes by ``file#group:row``; keeps the last row group of each thread."""

    threads = 1

    def __init__(self, storage: Storage, column: str) -> None:
        self._storage = storage
        self._column = column
        self._last = threading.local()

    def __reduce__(self) -> tuple[object, ...]:
        return RowReader, (self._storage, self._column)

    def read(self, item: SourceItem) -> bytes:
        """Bytes of an item."""
        group, _, row = item.path.rpartition(":")
        if getattr(self._last, "group", None) != group:
            self._last.images = self._load(group)
            self._last.group = group
        cell = self._last.images[int(row)].as_py()
        data = cell["bytes"] if isinstance(cell, dict) else cell
        return data or b""

    def _load(self, group: str) -> Any:
        name, _, number = group.rpartition("#")
        return _open(self._storage, name).read_row_group(int(number), columns=[self._column]).column(0)


def _files(uri: str) -> tuple[Storage, list[str]]:
    storage = open_storage(uri.rstrip("/"))
    if uri.endswith(".parquet") and _is_file(storage):
        parent, _, name = uri.rpartition("/")
        return open_storage(parent or ("/" if uri.startswith("/") else ".")), [name]
    names = [name for name in storage.list() if name.endswith(".parquet")]
    if not names:
        raise DataError(f"{uri}: no Parquet file there; check pack.source")
    return storage, names


def _is_file(storage: Storage) -> bool:
    path = storage.local_path("")
    return path.is_file() if path is not None else not any(True for _ in storage.list())


def _open(storage: Storage, name: str) -> Any:
    path = storage.local_path(name)
    try:
        if path is not None:
            return pq.ParquetFile(path, memory_map=True)
        return pq.ParquetFile(StorageFile(storage, name), pre_buffer=True)
    except FileNotFoundError as error:
        raise NotFoundError(f"{storage.uri}/{name}: is not there") from error
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{storage.uri}/{name}: is not a Parquet file ({error}); remove it or write it again"
        ) from error


def _image_column(file: Any, place: str) -> str:
    names = file.schema_arrow.names
    for name in _COLUMNS:
        if name in names:
            return name
    raise DataError(
        f"{place}: has no column 'image' or 'bytes' (it has {', '.join(names)}); rename the one with images"
    )


def _rows(file: Any) -> Iterator[tuple[int, int, int]]:
    """(row group, row in it, estimated bytes) of each row."""
    for group in range(file.metadata.num_row_groups):
        info = file.metadata.row_group(group)
        for row in range(info.num_rows):
            yield group, row, info.total_byte_size // info.num_rows


def _classes(files: list[Any]) -> list[str] | None:
    """Names of the labels: Hugging Face's, else the distinct strings, else the numbers up to the largest."""
    schema = files[0].schema_arrow
    if "label" not in schema.names:
        return None
    names = _declared(schema)
    if names is not None:
        return names
    values = [value for file in files for value in _column(file, "label") if value is not None]
    if any(isinstance(value, str) for value in values):
        return sorted(set(map(str, values)))
    return [str(number) for number in range(max(map(int, values), default=-1) + 1)] or None


def _declared(schema: Any) -> list[str] | None:
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get("label", {}).get("names")
    return [str(name) for name in names] if names else None


def _labels(file: Any, classes: list[str] | None) -> list[int | None] | None:
    if classes is None:
        return None
    numbers = {name: i for i, name in enumerate(classes)}
    values = _column(file, "label")
    return [numbers[value] if isinstance(value, str) else _number(value) for value in values]


def _number(value: Any) -> int | None:
    return None if value is None or value < 0 else int(value)


def _column(file: Any, name: str) -> list[Any]:
    values: list[Any] = file.read(columns=[name]).column(0).to_pylist()
    return values
