"""A stored object as a file object, for libraries that read one: seekable, read-only, by range requests."""

from __future__ import annotations

import io

from dinoctl.data.storage import Storage


class StorageFile(io.RawIOBase):
    """Raises `NotFoundError` when it is opened on a missing key, `StorageError` when reading fails."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage, self._key = storage, key
        self._size = storage.size(key)
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
        """One request, unless the end is reached."""
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        data = self._storage.read(self._key, self._at, end) if end > self._at else b""
        self._at += len(data)
        return data
