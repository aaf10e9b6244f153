"""A split of a packed dataset, for reading: original image bytes by sample number, each checked by its CRC-32C."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray
from PIL import Image

from dinoctl.data.decode import open_image
from dinoctl.data.errors import ChangedError, DataError
from dinoctl.data.index import Index, open_index
from dinoctl.data.manifest import Manifest, SplitInfo, read_manifest
from dinoctl.data.reader.ranges import Ranges
from dinoctl.data.storage import Storage, open_storage

Decoded = TypeVar("Decoded")
Ahead = Callable[[int], bytes | None]
"""Who may have a sample's bytes already; answers None for what it has not."""
_ATTEMPTS = 3  # wrong bytes may be the network's fault: read again before calling a sample broken
_GAP = 2**16  # bytes between two images (tar headers, labels) that are worth reading to save a request


class Extent(NamedTuple):
    """Neighbouring samples of one shard: where their images lie in it, and their checksums."""

    path: str
    offsets: list[int]
    lengths: list[int]
    crcs: list[int]

    @property
    def end(self) -> int:
        """Byte after the last image."""
        return self.offsets[-1] + self.lengths[-1]


class Dataset:
    """Samples 0 to len - 1 of one split. Picklable: the receiver opens it again."""

    def __init__(self, storage: Storage, split: str, manifest: Manifest, index: Index) -> None:
        self.uri = storage.uri
        self.split = split
        self.hash = f"{manifest.hash}:{split}"
        """Identity of the content: the dataset's hash and the split's name."""
        self.info: SplitInfo = manifest.splits[split]
        self._home = storage
        self._storage = open_storage(self.info.root) if self.info.root else storage
        self._index = index
        self._shards = [shard.path for shard in self.info.shards]
        names = ("shard", "offset", "length", "crc32c")
        self._shard, self._offset, self._length, self._crc = (index.unchecked(name) for name in names)

    @staticmethod
    def open(uri: str, split: str = "train") -> Dataset:
        """Open a split and verify its manifest and index.

        Raises:
            DataError: no dataset there, no such split, or files that were changed after packing.
            StorageError: the place cannot be read.
        """
        storage = open_storage(uri)
        manifest = read_manifest(storage)
        if split not in manifest.splits:
            raise DataError(f"{storage.uri}: has no split {split!r}{_instead(split, sorted(manifest.splits))}")
        return Dataset(storage, split, manifest, open_index(storage, manifest.splits[split]))

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.uri, self.split, self.hash)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"Dataset({self.uri!r}, {self.split!r}, {len(self)} samples)"

    @property
    def classes(self) -> list[str] | None:
        """Names of the labels, or None."""
        return self.info.classes

    def labels(self) -> NDArray[np.int64]:
        """Label of every sample, shape (samples,); -1 where there is none."""
        return self._index.column("label").astype(np.int64)

    def median_side(self) -> int:
        """Median of the images' shorter sides, in pixels; of a large dataset, that of a part of it."""
        return int(np.median(np.minimum(self._index.some("width"), self._index.some("height"))))

    def keys(self) -> list[str]:
        """Name of every sample."""
        return self._index.keys()

    def read(self, i: int, ahead: Ahead | None = None) -> bytes:
        """The image bytes of sample ``i``; ``ahead`` is asked for them first.

        Raises:
            DataError: the bytes are not the ones that were packed.
            ChangedError: nor is the dataset the one that was opened.
            StorageError: the shard cannot be read.
        """
        fetched = ahead(i) if ahead else None
        if fetched is not None:
            return fetched
        self._index.check(i)
        path, start, length = self._shards[self._shard[i]], int(self._offset[i]), int(self._length[i])
        for _ in range(_ATTEMPTS):
            data = self._storage.read(path, start, start + length)
            if crc32c(data) == self._crc[i]:
                return data
        self.check_unchanged()
        raise DataError(self.broken(i))

    def extent(self, first: int, count: int, most_bytes: int) -> Extent:
        """Sample ``first`` and those of the ``count`` from it on that lie beside it, of ``most_bytes`` in all."""
        self._index.check(first, min(count, len(self) - first))
        span = slice(first, first + count)
        shards, offsets, lengths = self._shard[span], self._offset[span].tolist(), self._length[span].tolist()
        together, taken = 1, lengths[0]
        while together < len(lengths):
            gap = offsets[together] - offsets[together - 1] - lengths[together - 1]
            taken += lengths[together]
            if shards[together] != shards[0] or not 0 <= gap <= _GAP or taken > most_bytes:
                break
            together += 1
        crcs = self._crc[first : first + together].tolist()
        return Extent(self._shards[shards[0]], offsets[:together], lengths[:together], crcs)

    def starts(self) -> NDArray[np.int64]:
        """First sample of each shard, and the number of samples last; shape (shards + 1,)."""
        return self._index.starts(len(self._shards))

    def ends(self, first: int, count: int) -> NDArray[np.int64]:
        """Byte of its shard at which each of ``count`` samples ends, shape (count,)."""
        ends: NDArray[np.int64] = self._offset[first : first + count] + self._length[first : first + count]
        return ends

    def ranges(self) -> Ranges | None:
        """Where a reader gets extents from; None where the shards are files."""
        return self._storage.ranges({shard.path: shard.bytes for shard in self.info.shards})

    def broken(self, i: int) -> str:
        """What to say of a sample whose bytes are wrong."""
        path, start = self._shards[self._shard[i]], int(self._offset[i])
        end = start + int(self._length[i])
        return f"{self._storage.uri}/{path}: sample {i} (bytes {start} to {end}) is corrupt: wrong CRC"

    def check_unchanged(self) -> None:
        """Looks at the manifest again.

        Raises:
            ChangedError: it is another one, or gone.
            StorageError: it cannot be read.
        """
        for _ in range(_ATTEMPTS):  # a bit that turned on the way is no change
            with suppress(DataError):
                manifest = read_manifest(self._home)
                if f"{manifest.hash}:{self.split}" == self.hash:
                    return
        raise ChangedError(f"{self.uri}: was packed again or removed while it was in use; start another job on it")

    def image(self, i: int) -> Image.Image:
        """Sample ``i`` decoded, of mode RGB or L; raises as `decoded` does."""
        return self.decoded(i, open_image)

    def decoded(self, i: int, decode: Callable[[bytes], Decoded], ahead: Ahead | None = None) -> Decoded:
        """What ``decode`` makes of the bytes of sample ``i``.

        Raises:
            DataError: the bytes are corrupt or no image; names the sample.
            StorageError: the shard cannot be read.
        """
        data = self.read(i, ahead)
        try:
            return decode(data)
        except DataError as error:
            raise DataError(f"{self.uri}: sample {i} of {self.split!r}: {error}") from error


def _reopen(uri: str, split: str, expected: str) -> Dataset:
    dataset = Dataset.open(uri, split)
    if dataset.hash != expected:
        raise ChangedError(f"{uri}: was packed again while it was in use (hash {dataset.hash}, expected {expected})")
    return dataset


def _instead(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"
