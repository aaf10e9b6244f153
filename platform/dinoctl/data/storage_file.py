"""A stored object as a file object, for libraries that read one: seekable, read-only, by range requests."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from dinoctl.data.storage import Storage


class RangeFile(io.RawIOBase):
    """A file of ``size`` bytes; ``fetch(start, end)`` gives those of a range."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch = size, fetch
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """One range, unless the end is reached."""
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        data = self._fetch(self._at, end) if end > self._at else b""
        self._at += len(data)
        return data


class StorageFile(RangeFile):
    """Raises `NotFoundError` when it is opened on a missing key, `StorageError` when reading fails."""

    def __init__(self, storage: Storage, key: str) -> None:
        super().__init__(storage.size(key), partial(storage.read, key))
