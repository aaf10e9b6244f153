"""Output on its way from a file on a machine's disk to chunks in the storage: read while it grows, whole lines,
without secrets, bounded on both ends.
"""

import os
from collections import deque
from pathlib import Path

from dinoctl.handover.attempts import AttemptStore

CHUNK = 256 * 2**10
_KEPT = 400
"""Chunks of a source in the storage, about 100 MB; the oldest give way."""
_WAITING = 64
"""Full chunks in memory while the storage can't be reached."""
_LINE = 64 * 2**10
_FILE = 64 * 2**20
_READ = 4 * 2**20


class GrowingFile:
    """A file that others append to. When it is long and all of it has been read, it begins again from nothing."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._at, self._rest = 0, b""

    def read(self, *, last: bool = False) -> bytes:
        """Whole lines that have come since; with ``last`` also one without an end. Where somebody writes faster than
        this can be read, the middle is left out.
        """
        size = os.fstat(self._file).st_size
        note = b""
        if size - self._at > _FILE:
            left_out, self._at = size - _READ - self._at, size - _READ
            note = f"... {left_out} bytes of output left out ...\n".encode()
        data = os.pread(self._file, _READ, self._at)
        self._at += len(data)
        if self._at > _FILE and self._at == os.fstat(self._file).st_size:
            os.ftruncate(self._file, 0)  # writers append, so they go on at the beginning
            self._at = 0
        return note + self._lines(data, last=last and len(data) < _READ)

    def _lines(self, data: bytes, *, last: bool) -> bytes:
        text = self._rest + data
        end = text.rfind(b"\n") + 1
        if last or (end == 0 and len(text) > _LINE):
            end = len(text)
        self._rest = text[end:]
        return text[:end]


class LogWriter:
    """Fills chunks of one source. What can't be stored waits, up to a bound, for the next ``flush``."""

    def __init__(self, store: AttemptStore, source: str) -> None:
        self._store, self._source = store, source
        self._number: int | None = None
        self._open = b""
        self._full: deque[bytes] = deque(maxlen=_WAITING)
        self._changed = False

    def add(self, lines: bytes) -> None:
        """Takes whole lines."""
        self._open += lines
        self._changed = self._changed or bool(lines)
        while len(self._open) >= CHUNK:
            end = self._open.rfind(b"\n", 0, CHUNK) + 1 or CHUNK
            self._full.append(self._open[:end])
            self._open = self._open[end:]

    def flush(self) -> None:
        """Stores what is new. Raises StorageError; nothing is lost by it at first."""
        if self._number is None:
            self._number = max(self._store.log_chunks(self._source), default=-1) + 1
        while self._full:
            self._store.write_log(self._source, self._number, self._full[0])
            self._full.popleft()
            self._number += 1
            if self._number > _KEPT:
                self._store.delete_log(self._source, self._number - _KEPT - 1)
        if self._changed and self._open:
            self._store.write_log(self._source, self._number, self._open)
        self._changed = False
