"""Storage on a local directory. A write is a temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dinoctl.data.errors import DataError, NotFoundError, StorageError
from dinoctl.data.storage import Entry, Storage

TEMPORARY = ".tmp-"  # what a killed writer leaves behind; never listed
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_PIECE = 2**30  # one pread returns at most 2 GiB


class LocalStorage(Storage):
    """A directory; it is made by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.normpath(root.expanduser().absolute()))
        self.uri = str(self.root)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """See `Storage.read`."""
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(descriptor).st_size
                return _pread(descriptor, start or 0, size if end is None else min(end, size))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _translate(error, "read", path) from error

    def write_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        """See `Storage.write_chunks`."""
        path = self._path(key)
        with self._temporary(path, chunks) as temporary:
            temporary.replace(path)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """See `Storage.write_if_absent`. A hard link is the one call that both creates and refuses to replace."""
        path = self._path(key)
        if path.exists():
            return False
        with self._temporary(path, (data,)) as temporary:
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
        return True

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.entries`. Links to directories are followed, each directory once."""
        top = self._path(prefix) if prefix.endswith("/") or not prefix else self._path(prefix).parent
        found = [entry for entry in _walk(self.root, top, set()) if entry.key.startswith(prefix)]
        return iter(sorted(found))

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        path = self._path(key)
        with _explained("read", path):
            return path.stat().st_size

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        path = self._path(key)
        with _explained("delete", path), suppress(FileNotFoundError):
            path.unlink()

    def delete_prefix(self, prefix: str) -> None:
        """See `Storage.delete_prefix`. Directories that a prefix names whole go as well."""
        if prefix.endswith("/") or not prefix:
            shutil.rmtree(self._path(prefix), ignore_errors=True)
        for key in list(self.list(prefix)):
            self.delete(key)

    def local_path(self, key: str) -> Path | None:
        """The file."""
        return self._path(key)

    def child(self, name: str) -> Storage:
        """See `Storage.child`."""
        return LocalStorage(self._path(name))

    def sweep(self) -> None:
        """See `Storage.sweep`."""
        for path in self.root.rglob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if ".." in key.split("/") or key.startswith("/"):
            raise DataError(f"{key!r} leads out of {self.root}")
        return self.root / key

    @contextmanager
    def _temporary(self, path: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
        """A synced file beside ``path`` with the given content; gone afterwards unless it was renamed."""
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        with _explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_synced(temporary, chunks)
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(path.parent)


def _pread(descriptor: int, start: int, end: int) -> bytes:
    if end - start <= _PIECE:
        return os.pread(descriptor, max(end - start, 0), start)
    pieces = [os.pread(descriptor, min(_PIECE, end - at), at) for at in range(start, end, _PIECE)]
    return b"".join(pieces)


def _write_synced(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Make a rename durable. Some file systems cannot sync directories; the rename is atomic there all the same."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(root: Path, top: Path, seen: set[tuple[int, int]]) -> Iterator[Entry]:
    with _explained("list", top):
        try:
            info = top.stat()
        except FileNotFoundError:
            return
        if (info.st_dev, info.st_ino) in seen:
            return
        seen.add((info.st_dev, info.st_ino))
        with os.scandir(top) as found:
            children = list(found)
    for child in children:
        if child.is_dir():
            yield from _walk(root, Path(child.path), seen)
        elif not child.name.startswith(TEMPORARY):
            yield Entry(os.path.relpath(child.path, root), _size(child))


def _size(child: os.DirEntry[str]) -> int:
    try:
        return child.stat().st_size
    except FileNotFoundError:  # a dangling link: listed, so that who reads it can report it
        return 0


@contextmanager
def _explained(action: str, path: Path) -> Iterator[None]:
    """Turns what the operating system says into our errors."""
    try:
        yield
    except (StorageError, DataError):
        raise
    except OSError as error:
        raise _translate(error, action, path) from error


def _translate(error: OSError, action: str, path: Path) -> StorageError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if action in ("read", "list") and error.errno in _ABSENT:
        return NotFoundError(f"cannot {action} {path}: {reason}")
    if error.errno in _FULL:
        free = _free(path)
        return StorageError(
            f"cannot write {path}: {reason} ({free / 2**20:.0f} MiB free); make room or raise the limit, then run again"
        )
    return StorageError(f"cannot {action} {path}: {reason}; check that the path exists and that this user may use it")


def _free(path: Path) -> int:
    existing = next(parent for parent in path.parents if parent.exists())
    return shutil.disk_usage(existing).free
