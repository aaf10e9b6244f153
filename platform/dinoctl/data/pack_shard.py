"""Packing one shard: read, check, write a tar, record it in the journal. The unit of parallel and resumed work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from google_crc32c import extend, value

from dinoctl.data import tar
from dinoctl.data.building import JOURNAL, BadFile, Packed, parse_record, shard_path
from dinoctl.data.decode import decode, dimensions
from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.index import Row
from dinoctl.data.listing import stored
from dinoctl.data.manifest import ShardInfo
from dinoctl.data.sources.base import SourceItem
from dinoctl.data.sources.folder import SUFFIXES
from dinoctl.data.storage import Storage, open_storage

_AHEAD = 2  # items on the way for each thread


class Task(NamedTuple):
    """A shard to be made: its split, its number there, its candidates in order."""

    split: str
    number: int
    items: list[SourceItem]

    @property
    def path(self) -> str:
        """Key of the tar."""
        return shard_path(self.split, self.number)

    @property
    def record(self) -> str:
        """Key of its record in the journal."""
        return f"{JOURNAL}{self.split}-{self.number:06d}.json"


class Image(NamedTuple):
    """A checked image."""

    data: bytes
    suffix: str
    width: int
    height: int


def check(item: SourceItem, verify: bool) -> Image:
    """Read an item and see that it is an image; ``verify`` decodes all of it, else the header has to do.

    Raises:
        DataError: why it is not fit for the dataset.
        StorageError: the source failed.
    """
    if item.suffix and item.suffix not in SUFFIXES:
        raise DataError(f"unknown suffix .{item.suffix}")
    data = _bytes(item)
    if verify:
        height, width, _ = decode(data).shape
    else:
        width, height = dimensions(data)
    return Image(data, item.suffix or _sniffed(data), width, height)


def _bytes(item: SourceItem) -> bytes:
    try:
        data = item.read()
    except NotFoundError as error:
        raise DataError("cannot be read: it is not there") from error
    if not data:
        raise DataError("empty file")
    return data


def _sniffed(data: bytes) -> str:
    if data.startswith(b"\xff\xd8"):
        return "jpg"
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[8:12] == b"WEBP" else "img"


class ShardPacker:
    """Makes shards below a destination; runs in the packing process or in a child."""

    def __init__(self, destination: str, verify: bool) -> None:
        self._storage = open_storage(destination)
        self._verify = verify

    def __call__(self, task: Task) -> Packed:
        """Make a shard, or take it from the journal when an earlier run has finished it."""
        return recorded(self._storage, task) or self._make(task)

    def _make(self, task: Task) -> Packed:
        packed = Packed(ShardInfo(task.path, 0, 0))
        seen = _Seen()
        self._storage.write_chunks(task.path, seen.through(self._members(task, packed, seen)))
        packed.shard = ShardInfo(task.path, seen.bytes, seen.crc)
        if self._storage.local_path(task.path) is None:
            packed.etag = stored(self._storage, task.path).etag
        self._storage.write(task.record, packed.record())
        return packed

    def _members(self, task: Task, packed: Packed, seen: _Seen) -> Iterator[bytes]:
        for item, image in self._checked(task.items):
            if isinstance(image, DataError):
                packed.bad.append(BadFile(item.path, str(image)))
                continue
            members, offset = tar.sample(item.key, image.suffix, image.data, item.label)
            packed.rows.append(_row(task, item, image, seen.bytes + offset))
            yield members
        yield tar.END

    def _checked(self, items: list[SourceItem]) -> Iterator[tuple[SourceItem, Image | DataError]]:
        """Items in order, several read at once where that hides a bucket's latency."""
        threads = items[0].reader.threads
        if threads == 1:
            yield from ((item, self._outcome(item)) for item in items)
            return
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[tuple[SourceItem, Future[Image | DataError]]] = deque()
            for item in items:
                waiting.append((item, pool.submit(self._outcome, item)))
                if len(waiting) == _AHEAD * threads:
                    first, image = waiting.popleft()
                    yield first, image.result()
            yield from ((item, image.result()) for item, image in waiting)

    def _outcome(self, item: SourceItem) -> Image | DataError:
        try:
            return check(item, self._verify)
        except DataError as error:
            return error


def _row(task: Task, item: SourceItem, image: Image, offset: int) -> Row:
    label = -1 if item.label is None else item.label
    crc = value(image.data)
    return Row(item.key, task.number, offset, len(image.data), crc, image.width, image.height, label)


class _Seen:
    """Counts and checksums what passes through."""

    def __init__(self) -> None:
        self.bytes = 0
        self.crc = 0

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.bytes += len(chunk)
            self.crc = extend(self.crc, chunk)
            yield chunk


def recorded(storage: Storage, task: Task) -> Packed | None:
    """The result of an earlier run if its record is there and the tar is what the record says."""
    try:
        packed = parse_record(storage.read(task.record))
        now = stored(storage, task.path)
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None
    return packed if now.size == packed.shard.bytes and _intact(storage, packed, now.etag) else None


def _intact(storage: Storage, packed: Packed, etag: str | None) -> bool:
    if storage.local_path(packed.shard.path) is None:
        return etag == packed.etag  # an object appears whole or not at all: this says that it is still the same
    return crc32c_of(storage, packed.shard.path, packed.shard.bytes) == packed.shard.crc32c


def crc32c_of(storage: Storage, path: str, size: int) -> int:
    """CRC-32C of a whole file or object."""
    crc = 0
    for start in range(0, size, 2**24):
        crc = extend(crc, storage.read(path, start, min(start + 2**24, size)))
    return crc
