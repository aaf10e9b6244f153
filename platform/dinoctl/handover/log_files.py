"""Output on its way from a file on a machine's disk to chunks in the storage: read while it grows, whole lines,
without secrets, bounded on both ends.
"""

import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
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
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL")
_PLACE = re.compile(r"(_FILE|_PATH|_DIR|_URI|_URL)$")
_SHAPES = re.compile(rb"(?<=//)[^/@\s:]+:[^/@\s]+(?=@)|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+|(?<=Bearer )\S+")
_HIDDEN = b"***"


class Redactor:
    """Takes values of secret variables, tokens, and passwords in URLs out of text. ``names``: variables that are secret
    whatever they are called.
    """

    def __init__(self, environ: Mapping[str, str], names: Iterable[str] = ()) -> None:
        told = {environ.get(name, "") for name in names}
        guessed = {
            value for name, value in environ.items() if _SECRET.search(name.upper()) and not _PLACE.search(name.upper())
        }
        secrets = {value for value in told if len(value) >= 4} | {value for value in guessed if len(value) >= 8}
        longest_first = sorted((re.escape(value.encode()) for value in secrets), key=len, reverse=True)
        self._values = re.compile(b"|".join(longest_first)) if longest_first else None

    def __call__(self, text: bytes) -> bytes:
        """Text with *** in their place."""
        text = _SHAPES.sub(_HIDDEN, text)
        return self._values.sub(_HIDDEN, text) if self._values else text


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
