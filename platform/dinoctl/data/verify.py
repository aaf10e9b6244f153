"""A dataset looked through from end to end, where opening it verifies only what has to be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import pairwise

from google_crc32c import value

from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.index import Index, differs, open_index
from dinoctl.data.inplace.window import Window
from dinoctl.data.listing import Stored, listed
from dinoctl.data.manifest import ShardInfo, SplitInfo, read_manifest
from dinoctl.data.pack_shard import crc32c_of
from dinoctl.data.storage import Storage, open_storage

_PIECE = 2**24


def verify(uri: str, *, shards: bool = False, progress: Callable[[int, int], None] | None = None) -> str:
    """Check all bytes of manifest, index and keys, and that each shard is there unchanged by its size and ETag.

    With ``shards`` they are read as well: whole ones against their checksum, those indexed in place sample by sample.
    Returns what was found in a line.

    Raises:
        DataError: something differs from what was packed or indexed.
        StorageError: something cannot be read.
    """
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    done = 0
    for split in manifest.splits.values():
        _whole(storage, split.index, split.index_sha256)
        if split.keys is not None and split.keys_sha256 is not None:
            _whole(storage, split.keys, split.keys_sha256)
        index = open_index(storage, split)
        place = open_storage(split.root) if split.root else storage
        _present(place, split)
        for size in _read(place, split, index) if shards else ():
            done += size
            if progress:
                progress(done, total)
    counts = ", ".join(f"{name} {split.samples}" for name, split in sorted(manifest.splits.items()))
    read = "read and whole" if shards else "there, of the right size"
    return f"{counts} samples; index as it was written; {total / 2**20:.1f} MiB of shards {read}"


def _whole(storage: Storage, key: str, sha256: str) -> None:
    state, size = hashlib.sha256(), storage.size(key)
    for at in range(0, size, _PIECE):
        state.update(storage.read(key, at, at + _PIECE))
    if state.hexdigest() != sha256:
        raise differs(f"{storage.uri}/{key}")


def _present(place: Storage, split: SplitInfo) -> None:
    now: dict[str, Stored] = {one.key: one for one in listed(place)}
    for shard in split.shards:
        found = now.get(shard.path)
        if found is None:
            raise NotFoundError(f"{place.uri}/{shard.path}: is not there any more; bring it back")
        if found.size != shard.bytes or (shard.etag and found.etag and shard.etag != found.etag):
            raise DataError(
                f"{place.uri}/{shard.path}: is not the file that it was ({found.size} bytes, {shard.bytes} then); "
                "bring that one back, or index or pack again into another place"
            )


def _read(place: Storage, split: SplitInfo, index: Index) -> Iterator[int]:
    """Bytes of each shard that turned out whole."""
    index.check(0, len(index))
    starts = index.starts(len(split.shards)).tolist()
    for shard, (first, end) in zip(split.shards, pairwise(starts), strict=True):
        if shard.crc32c is None:
            _samples(place, shard, index, range(first, end))
        elif crc32c_of(place, shard.path, shard.bytes) != shard.crc32c:
            raise DataError(f"{place.uri}/{shard.path}: is damaged (its checksum differs); bring a good copy back")
        yield shard.bytes


def _samples(place: Storage, shard: ShardInfo, index: Index, ids: range) -> None:
    offsets, lengths, crcs = (index.unchecked(name) for name in ("offset", "length", "crc32c"))
    with Window(place, shard.path, shard.bytes) as file:
        for i in ids:
            start = int(offsets[i])
            if value(file.read(start, start + int(lengths[i]))) != crcs[i]:
                raise DataError(f"{place.uri}/{shard.path}: sample {i} is damaged; bring a good copy of the shard back")
