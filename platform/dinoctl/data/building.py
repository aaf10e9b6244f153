"""What packing and indexing share: a journal of finished shards, the list of rejected files, the dataset at the end.

A record of the journal is written when its shard is finished; a run that was killed leaves records, and the next one
takes them. ``dataset.json`` is written last: until then there is no dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.index import Row
from dinoctl.data.index_write import IndexWriter, Written
from dinoctl.data.local import TEMPORARY
from dinoctl.data.manifest import FILE, Manifest, ShardInfo, SplitInfo
from dinoctl.data.storage import Storage

JOURNAL = "_pack/"
"""Where an unfinished dataset keeps its records; gone when it is complete."""
BAD = "bad.jsonl"
_INDEX = "_index/"
_DONE = "pack.json"
_PLAN = f"{JOURNAL}plan.json"


class BadFile(NamedTuple):
    """A file that is not in the dataset, and why."""

    path: str
    reason: str


@dataclass
class Packed:
    """A shard that is finished: where it is, its rows of the index, what was left out."""

    shard: ShardInfo
    rows: list[Row] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)
    etag: str | None = None
    """Of the shard on a bucket: whether it is still the one that was written."""
    labels: list[str | None] = field(default_factory=list)
    """Of the rows, as text, where numbers are given only when all are known."""

    def record(self) -> bytes:
        """As the journal has it."""
        return json.dumps({**vars(self), "shard": vars(self.shard)}).encode()


def parse_record(data: bytes) -> Packed:
    """A record of the journal."""
    content = json.loads(data)
    rows = [Row(*row) for row in content["rows"]]
    bad = [BadFile(*bad) for bad in content["bad"]]
    return Packed(ShardInfo(**content["shard"]), rows, bad, content.get("etag"), content.get("labels", []))


@dataclass(frozen=True)
class PackReport:
    """What was done: samples of each split, files left out, the dataset's hash."""

    samples: dict[str, int]
    bad: list[BadFile]
    hash: str


class Build:
    """A dataset that is being made below a storage, from the beginning or from where an earlier run was killed."""

    def __init__(self, storage: Storage, fingerprint: str, shards: dict[str, int], *, in_place: bool = False) -> None:
        """``shards`` counts by split those that are made here: none when shards are indexed ``in_place``."""
        self.storage = storage
        self._fingerprint, self._shards, self._in_place = fingerprint, shards, in_place

    def finished(self) -> PackReport | None:
        """The report of the run that made this dataset.

        Raises:
            DataError: there is a dataset, of another source or other settings.
        """
        if not self.storage.exists(FILE):
            return None
        try:
            done = json.loads(self.storage.read(_DONE))
        except NotFoundError:
            done = {}
        if done.get("fingerprint") != self._fingerprint:
            raise DataError(
                f"{self.storage.uri}: holds another dataset (or its source has changed since); give another place or "
                "delete that one first"
            )
        self.storage.delete_prefix(JOURNAL)  # a run may have been killed between making the dataset and tidying up
        return PackReport(done["samples"], [BadFile(*bad) for bad in done["bad"]], done["hash"])

    def begin(self) -> None:
        """Start, or go on with, this plan; what another plan left unfinished is removed."""
        self.sweep()
        try:
            known = self.storage.read(_PLAN)
        except NotFoundError:
            known = b""
        if known and known != self._plan():
            self._discard(known)
        self.storage.write(_PLAN, self._plan())

    def writer(self) -> IndexWriter:
        """For the rows of a split."""
        return IndexWriter(self.storage.local_path(JOURNAL))

    def write_index(self, split: str, writer: IndexWriter) -> Written:
        """Write the index of a split."""
        return writer.finish(self.storage, *self._index_files(split))

    def info(
        self, split: str, made: Written, shards: list[ShardInfo], classes: list[str] | None, root: str | None = None
    ) -> SplitInfo:
        """What the manifest says of a split."""
        index, keys = self._index_files(split)
        return SplitInfo(
            samples=made.samples,
            bytes=made.bytes,
            mean_bytes=made.bytes / max(made.samples, 1),
            index=index,
            index_sha256=made.index_sha256,
            shards=shards,
            classes=classes,
            index_bytes=made.index_bytes,
            index_sums_sha256=made.sums_sha256,
            keys=keys,
            keys_sha256=made.keys_sha256,
            root=root,
        )

    def write_bad(self, bad: list[BadFile]) -> None:
        """The list of rejected files."""
        lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in sorted(bad)]
        self.storage.write(BAD, "".join(lines).encode())

    def finish(self, splits: dict[str, SplitInfo], bad: list[BadFile]) -> PackReport:
        """Make the dataset exist, then remove the journal."""
        manifest = Manifest(splits)
        report = PackReport({name: split.samples for name, split in splits.items()}, sorted(bad), manifest.hash)
        done = {
            "fingerprint": self._fingerprint,
            "samples": report.samples,
            "bad": report.bad,
            "hash": report.hash,
        }
        self.write_bad(bad)
        self.storage.write(_DONE, json.dumps(done).encode())
        manifest.write(self.storage)
        self.storage.delete_prefix(JOURNAL)
        return report

    def sweep(self) -> None:
        """Remove what killed writers left half-written. Beside shards that are not ours only in our own places."""
        if not self._in_place:
            self.storage.sweep()
            return
        for place in (JOURNAL, _INDEX):
            self.storage.child(place.rstrip("/")).sweep()
        root = self.storage.local_path("")
        for path in root.glob(f"{TEMPORARY}*") if root else ():
            path.unlink(missing_ok=True)

    def _index_files(self, split: str) -> tuple[str, str]:
        return index_files(split, in_place=self._in_place)

    def _plan(self) -> bytes:
        plan = {"fingerprint": self._fingerprint, "shards": self._shards, "in_place": self._in_place}
        return json.dumps(plan).encode()

    def _discard(self, known: bytes) -> None:
        for key in list(self.storage.list(JOURNAL)):
            if key != _PLAN:
                with suppress(ValueError, KeyError, TypeError):
                    shard = parse_record(self.storage.read(key)).shard
                    if shard.crc32c is not None:  # else it is not ours
                        self.storage.delete(shard.path)
        for key in _made_by(known):
            self.storage.delete(key)
        self.storage.delete_prefix(JOURNAL)


def _made_by(plan: bytes) -> Iterator[str]:
    """All that an interrupted run of a plan may have made, also what it had no time to record."""
    try:
        content = json.loads(plan)
        shards, in_place = content["shards"], content["in_place"]
    except (ValueError, KeyError, TypeError):
        return  # of a former version, whose records say what it made
    for split, count in shards.items():
        yield from index_files(split, in_place=in_place)
        yield from (shard_path(split, number) for number in range(count))
    yield from (BAD, _DONE)


def too_many(bad: list[BadFile], samples: str, limit: str, uri: str) -> str:
    """What is wrong when more is unreadable than allowed.

    ``samples`` is how many of what there are ("10 files"), ``limit`` the option that allows some, and its value.
    """
    first = "; ".join(f"{path} ({reason})" for path, reason in sorted(bad)[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{len(bad)} of {samples} are unreadable, above {limit}: {first}{more} (list: {uri}/{BAD})"


def index_files(split: str, *, in_place: bool) -> tuple[str, str]:
    """Keys of a split's index and of its samples' names. Beside shards that are not ours they keep to one folder."""
    prefix = f"{_INDEX}{split}-" if in_place else f"{split}/"
    return f"{prefix}index.npy", f"{prefix}keys.parquet"


def shard_path(split: str, number: int) -> str:
    """Key of a tar that packing makes."""
    return f"{split}/shard-{number:06d}.tar"
