"""A shard read from its beginning to its end in large pieces, the next ones fetched ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

from dinoctl.data.storage import Storage
from dinoctl.data.storage_file import RangeFile

_PIECE = 4 * 2**20
_AHEAD = 3  # pieces; also how many requests are on the way at once


class Window(AbstractContextManager["Window"]):
    """The bytes of one stored file. Reading forward is fast, going back works; a jump skips what lies between."""

    def __init__(self, storage: Storage, key: str, size: int) -> None:
        self.size = size
        self.place = f"{storage.uri}/{key}"
        self._storage, self._key = storage, key
        self._pool = ThreadPoolExecutor(_AHEAD)
        self._pieces: dict[int, Future[bytes]] = {}

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end); fewer where the file ends before."""
        end = min(end, self.size)
        if start >= end:
            return b""
        first, last = start // _PIECE, (end - 1) // _PIECE
        data = (
            b"".join([self._piece(number) for number in range(first, last + 1)]) if first < last else self._piece(first)
        )
        return data[start - first * _PIECE : end - first * _PIECE]

    def _piece(self, number: int) -> bytes:
        for ahead in range(number, min(number + 1 + _AHEAD, -(-self.size // _PIECE))):
            if ahead not in self._pieces:
                self._pieces[ahead] = self._pool.submit(self._fetch, ahead)
        for old in [known for known in self._pieces if not number - 1 <= known <= number + _AHEAD]:
            self._pieces.pop(old).cancel()
        return self._pieces[number].result()

    def _fetch(self, number: int) -> bytes:
        return self._storage.read(self._key, number * _PIECE, min((number + 1) * _PIECE, self.size))


class WindowFile(RangeFile):
    """A window as a file object, for libraries that want one."""

    def __init__(self, window: Window) -> None:
        super().__init__(window.size, window.read)
