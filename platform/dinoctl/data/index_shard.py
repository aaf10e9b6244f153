"""Indexing one shard that stays where it is: find its samples, check their images, record them in the journal."""

from __future__ import annotations

from typing import NamedTuple

from google_crc32c import value

from dinoctl.data.building import JOURNAL, BadFile, Packed, parse_record
from dinoctl.data.decode import decode, dimensions
from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.index import Row
from dinoctl.data.inplace.base import Found, Layout, Shard
from dinoctl.data.inplace.window import Window
from dinoctl.data.listing import stored
from dinoctl.data.manifest import ShardInfo
from dinoctl.data.storage import open_storage

_LARGEST = 2**31 - 1


class Task(NamedTuple):
    """A shard to be indexed, its number in its split, and how it is read."""

    shard: Shard
    number: int
    layout: Layout

    @property
    def record(self) -> str:
        """Key of its record in the journal."""
        return f"{JOURNAL}{self.shard.split}-{self.number:06d}.json"


class ShardIndexer:
    """Indexes shards below a source; runs in the indexing process or in a child."""

    def __init__(self, source: str, destination: str, verify: bool) -> None:
        self._source, self._destination = open_storage(source), open_storage(destination)
        self._verify = verify

    def __call__(self, task: Task) -> Packed:
        """Index a shard, or take it from the journal: the plan's fingerprint says that the shard is still the same."""
        return self._recorded(task) or self._index(task)

    def _recorded(self, task: Task) -> Packed | None:
        try:
            return parse_record(self._destination.read(task.record))
        except (NotFoundError, ValueError, KeyError, TypeError):
            return None

    def _index(self, task: Task) -> Packed:
        shard = task.shard
        packed = Packed(ShardInfo(shard.path, shard.size, None, shard.etag))
        with Window(self._source, shard.path, shard.size) as file:
            for found in task.layout.samples(file, shard.path):
                bad = found if isinstance(found, BadFile) else self._add(task, packed, file, found)
                if bad is not None:
                    packed.bad.append(bad)
        now = stored(self._source, shard.path)
        if now[1:] != (shard.size, shard.etag, shard.changed_ns):
            raise DataError(f"{self._source.uri}/{shard.path}: was changed while it was indexed; run again")
        self._destination.write(task.record, packed.record())
        return packed

    def _add(self, task: Task, packed: Packed, file: Window, found: Found) -> BadFile | None:
        try:
            if not 0 < found.length <= _LARGEST:
                raise DataError("empty file" if not found.length else "larger than 2 GiB")
            data = file.read(found.offset, found.offset + found.length)
            if len(data) < found.length:
                raise DataError("cut off")
            if self._verify:
                height, width, _ = decode(data).shape
            else:
                width, height = dimensions(data)
        except DataError as error:
            return BadFile(f"{task.shard.path}#{found.key}", str(error))
        packed.rows.append(Row(found.key, task.number, found.offset, found.length, value(data), width, height, -1))
        packed.labels.append(found.label)
        return None
