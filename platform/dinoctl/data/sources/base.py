"""What a source of images is: a list of items that can be read one by one, in any order, from any thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from dinoctl.data.storage import Storage

_REMOTE = 16  # a request waits some tens of milliseconds


class SourceItem(NamedTuple):
    """One candidate for a sample. Nothing is read before `read`."""

    key: str
    """Unique in the source; the sample's name in the dataset."""
    suffix: str
    """File suffix without the dot, lower case; empty when only the bytes can tell."""
    label: int | None
    size: int
    """Bytes, exact or estimated; decides where shards are cut."""
    path: str
    """Where it comes from, for people."""
    reader: Reader

    def read(self) -> bytes:
        """The bytes as they are. Raises `StorageError` when the place fails."""
        return self.reader.read(self)


class Reader(Protocol):
    """Reads items. Picklable and small, because items travel to child processes with it."""

    threads: int
    """How many reads at once are worth it."""

    def read(self, item: SourceItem) -> bytes:
        """Bytes of an item."""
        ...


class Source(Protocol):
    """A finite collection of items in a fixed order."""

    classes: list[str] | None
    """Names of the labels, or None when the source has none."""
    sequential: bool
    """True when reading out of order is expensive; packing then keeps the source's order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[SourceItem]: ...


class StorageReader:
    """Reads items whose path is a key of a storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.threads = _REMOTE if storage.local_path("") is None else 1

    def read(self, item: SourceItem) -> bytes:
        """Bytes of an item."""
        return self._storage.read(item.path)
