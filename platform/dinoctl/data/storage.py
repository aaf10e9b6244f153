"""Object storage with the same behaviour on a local directory (``file://`` or a plain path) and on ``s3://``.

Keys are relative to the root and use ``/``. Writes are atomic: a key either has its whole new content or is as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from dinoctl.data.errors import DataError, NotFoundError

if TYPE_CHECKING:
    from dinoctl.data.reader.ranges import Ranges


class Entry(NamedTuple):
    """One stored object: its key relative to the root, and its bytes."""

    key: str
    size: int


class Storage(ABC):
    """A root under which objects are read and written by key. Safe to use from several threads; picklable.

    Every method raises `NotFoundError` for a missing key where that makes sense and `StorageError` when the
    environment fails.
    """

    uri: str
    """The root as it would be given to `open_storage`, without a trailing slash."""

    @abstractmethod
    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object, whole by default. Fewer bytes come back when the object ends before."""

    @abstractmethod
    def write_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        """Write an object from consecutive pieces; nobody sees it before the last one is stored."""

    @abstractmethod
    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object unless it exists. False, and nothing changes, when it does; one of many racers wins."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key starts with ``prefix``, sorted by key."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of an object."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error when it is not there."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Remove all objects whose key starts with ``prefix``."""

    @abstractmethod
    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file, or None when it is remote."""

    @abstractmethod
    def child(self, name: str) -> Storage:
        """The storage rooted at ``name`` below this one."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what killed writers left behind unseen. Only for who is the only writer below this root."""

    def ranges(self, sizes: Mapping[str, int]) -> Ranges | None:  # noqa: ARG002 - files are read as they are
        """Where a reader that looks ahead gets objects of known sizes from; None where that would gain nothing."""
        return None

    def check(self, *, write: bool) -> None:  # noqa: B027 - where nothing can be wrong before it is used
        """Whether this place can be used (and written to) at all: asks a remote one, for some seconds at most.

        Raises:
            StorageError: it can't; says why and what to do.
        """

    def write(self, key: str, data: bytes) -> None:
        """Write an object atomically."""
        self.write_chunks(key, (data,))

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with ``prefix``, sorted."""
        return (entry.key for entry in self.entries(prefix))

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def open_storage(uri: str | Path) -> Storage:
    """The storage at a path, ``file:///path`` or ``s3://bucket/prefix``. Touches nothing yet.

    Raises:
        DataError: the URI has another scheme or no bucket.
    """
    text = str(uri)
    if "://" not in text:
        return _local(Path(text))
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return _local(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from dinoctl.data.s3 import S3Storage  # boto3 takes a while to import: only who needs it pays

        return S3Storage(parts.netloc, parts.path.strip("/"))
    raise DataError(f"{text}: cannot be opened; write s3://bucket/prefix, file:///path or a path")


def _local(path: Path) -> Storage:
    from dinoctl.data.local import LocalStorage

    return LocalStorage(path)
