"""A directory or bucket prefix of image files, with or without one folder per class.

Class folders are recognised by shape: every image lies below a first-level folder. As soon as one image lies at the
top there are no labels. Files with other suffixes are passed on as items, so that packing reports them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.sources.base import SourceItem, StorageReader
from dinoctl.data.storage import Entry, open_storage

SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2", "avif"})


class Folder:
    """All files below a root, sorted by path; hidden ones are left out."""

    sequential = False

    def __init__(self, uri: str) -> None:
        self._storage = open_storage(uri)
        self._uri = self._storage.uri
        self._entries = [entry for entry in self._listed() if not _hidden(entry.key)]
        if not any(is_image(entry.key) for entry in self._entries):
            raise DataError(f"{self._uri}: no images in it; give a folder or prefix with {', '.join(sorted(SUFFIXES))}")
        self.classes = _classes(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SourceItem]:
        numbers = {name: i for i, name in enumerate(self.classes or ())}
        reader = StorageReader(self._storage)
        for entry, key in zip(self._entries, _keys(self._entries), strict=True):
            label = numbers.get(entry.key.split("/")[0]) if self.classes else None
            yield SourceItem(key, _suffix(entry.key), label, entry.size, entry.key, reader)

    def _listed(self) -> list[Entry]:
        root = self._storage.local_path("")
        if root is not None:
            _check_directory(root)
        try:
            return list(self._storage.entries())
        except NotFoundError as error:
            raise DataError(f"{self._uri}: {error}") from error


def is_image(path: str) -> bool:
    """Whether the suffix is one of an image."""
    return _suffix(path) in SUFFIXES


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix[1:].lower()


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _check_directory(root: Path) -> None:
    if not root.exists():
        raise DataError(f"{root}: there is no such directory; check pack.source")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, not a directory of images; check pack.source")


def _classes(entries: list[Entry]) -> list[str] | None:
    images = [entry.key.split("/") for entry in entries if is_image(entry.key)]
    if any(len(parts) < 2 for parts in images):
        return None
    return sorted({parts[0] for parts in images})


def _keys(entries: list[Entry]) -> Iterator[str]:
    """Tar member names without suffix. WebDataset ends a key at the first dot of the file name, so dots go."""
    plain = [_plain(entry.key, PurePosixPath(entry.key).stem) for entry in entries]
    twice = _repeated(plain)
    for entry, key in zip(entries, plain, strict=True):
        yield _plain(entry.key, PurePosixPath(entry.key).name) if key in twice else key


def _plain(path: str, name: str) -> str:
    parent = str(PurePosixPath(path).parent)
    text = name.replace(".", "_") if parent == "." else f"{parent}/{name.replace('.', '_')}"
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _repeated(names: list[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
