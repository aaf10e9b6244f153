"""Files of a bucket that every process of a node needs, fetched once: named by their hash, so never out of date.

They lie in ``$DINOCTL_CACHE_DIR``, by default ``~/.cache/dinoctl``, or where that cannot be written, in the directory
for temporary files. A file appears whole, by renaming; of processes that come at the same time one fetches and the
others wait, and if it is killed, another takes over. Before a file is fetched, those that were not asked for longest
make room for it; one that a process holds open stays, because removing it would free nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dinoctl.data.errors import DataError, StorageError
from dinoctl.data.storage import Storage

BUDGET = 32 * 2**30
"""Bytes that all files together may take (the indexes of a thousand million samples), and half of the disk's room."""
_ABANDONED_S = 600.0  # a file that nobody has written to for so long has lost its writer
_YOUNG_S = 600.0  # who asked for a file so lately may not have opened it yet
_PIECE = 8 * 2**20
_THREADS = 8


def cache_dir() -> Path:
    """Where this node keeps what it fetched."""
    chosen = os.environ.get("DINOCTL_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "dinoctl"
        usual.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        pass  # no home, or a read-only one, as containers have it
    else:
        if os.access(usual, os.W_OK):
            return usual
    return Path(tempfile.gettempdir()) / f"dinoctl-{os.getuid()}"


def cached(storage: Storage, key: str, sha256: str, size: int) -> Path:
    """The local file with an object's content, fetched unless it is there.

    Raises:
        DataError: the object is not the one whose hash was given.
        StorageError: it cannot be read, or the cache cannot be written.
    """
    path = cache_dir() / "files" / sha256
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _used(path, size):
            return path
        with _locked(path.with_suffix(".lock")):
            if not _used(path, size):
                _make_room(path.parent, size)
                _fetch(storage, key, sha256, size, path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"cannot keep {storage.uri}/{key} ({size / 2**20:.0f} MiB) in {path.parent}: {error.strerror}; "
            "make room there, or set DINOCTL_CACHE_DIR to a directory on a larger disk of this machine"
        ) from error
    return path


def drop(path: Path, descriptor: int) -> bool:
    """Remove a copy that turned out damaged, open as ``descriptor``; False where that cannot be done.

    One that another process has fetched in its place meanwhile stays.
    """
    try:
        with _locked(path.with_suffix(".lock")):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                path.unlink()
    except FileNotFoundError:
        pass  # somebody else was faster
    except OSError:
        return False
    return True


def hold(descriptor: int) -> None:
    """Has a file stay for as long as it is open here, or in a forked child."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _used(path: Path, size: int) -> bool:
    """Whether the file is there. Its time is when it was asked for last."""
    try:
        if path.stat().st_size != size:
            return False
        with suppress(PermissionError):  # another user's
            os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _make_room(folder: Path, size: int) -> None:
    """Removes files that nobody holds, the least lately used first, until one of ``size`` bytes fits."""
    held: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # somebody else makes room too
            if path.suffix != ".lock":
                held.append((path.stat().st_mtime, path.stat().st_size, path))
    used = sum(taken for _, taken, _ in held)
    most = min(BUDGET, (used + shutil.disk_usage(folder).free) // 2)
    for asked, taken, path in sorted(held):
        if used + size <= most or asked > time.time() - _YOUNG_S:
            return
        if path.suffix.startswith(".part-") and asked > time.time() - _ABANDONED_S:
            continue  # it may have been made this moment, and not be held yet
        used -= taken if _removed(path) else 0


def _removed(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while another process holds it
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _fetch(storage: Storage, key: str, sha256: str, size: int, path: Path) -> None:
    for left in path.parent.glob(f"{path.name}.part-*"):  # of who was killed: we hold the lock
        left.unlink(missing_ok=True)
    temporary = path.with_suffix(f".part-{uuid.uuid4().hex}")
    state = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            hold(file.fileno())
            for piece in _pieces(storage, key, size):
                state.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            if state.hexdigest() != sha256:
                raise DataError(
                    f"{storage.uri}/{key}: differs from what was packed; restore the file or pack the dataset again"
                )
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pieces(storage: Storage, key: str, size: int) -> Iterator[bytes]:
    """The object in order, several pieces on the way at once and no more in memory."""
    starts = range(0, size, _PIECE)
    with ThreadPoolExecutor(_THREADS) as pool:
        for at in range(0, len(starts), _THREADS):
            yield from pool.map(lambda start: storage.read(key, start, start + _PIECE), starts[at : at + _THREADS])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process of the node; the system lets go of it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
