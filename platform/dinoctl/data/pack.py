"""Packing: a source of images to a dataset of tar shards with an index.

Resumable: every finished shard is recorded, and an interrupted run repeats only what was not. The bytes are the same
whatever the number of workers and of interruptions. ``dataset.json`` is written last: until then there is no dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dinoctl.data.children import Child
from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.index import encode
from dinoctl.data.manifest import FILE, Manifest, SplitInfo
from dinoctl.data.pack_plan import Plan, make_plan
from dinoctl.data.pack_shard import JOURNAL, BadFile, Packed, ShardPacker, Task, parse_record
from dinoctl.data.sources import Source, open_source
from dinoctl.data.storage import Storage, open_storage

_DONE = "pack.json"
_PLAN = f"{JOURNAL}plan.json"
Progress = Callable[[int, int], None]
"""Called with (candidates dealt with, all candidates)."""


@dataclass(frozen=True)
class PackReport:
    """What packing did: samples of each split, files left out, the dataset's hash."""

    samples: dict[str, int]
    bad: list[BadFile]
    hash: str


def pack(
    source: str,
    destination: str | Path,
    *,
    format: str = "auto",  # noqa: A002 - the name in the document
    splits: Mapping[str, int | None] | None = None,
    shard_bytes: int = 256 * 2**20,
    max_bad_rate: float = 1e-4,
    verify: bool = True,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> PackReport:
    """Pack a source below ``destination``; a finished dataset of the same source and settings is left as it is.

    ``splits`` gives the samples to hold out by split name, for example ``{"val": 500}``: those with the smallest
    keyed hash of their name. The rest is ``train`` (or the name whose count is None). ``verify`` decodes every image;
    what cannot be read is listed in ``bad.jsonl`` and in the report.

    Raises:
        DataError: nothing usable in the source, more than ``max_bad_rate`` of it unreadable, or another dataset in
            the destination.
        StorageError: source or destination failed, for example a full disk. Run again to go on.
    """
    storage = open_storage(destination)
    origin = _open(source, format, storage)
    plan = make_plan(origin, splits or {}, shard_bytes, verify, seed)
    done = _finished(storage, plan)
    if done is not None:
        return done
    _begin(storage, plan)
    packed = _make_shards(storage, plan, max_bad_rate, verify, workers, progress or _silent)
    return _finish(storage, plan, packed, origin.classes, max_bad_rate)


def _open(source: str, kind: str, destination: Storage) -> Source:
    if "://" not in source and open_storage(source).uri == destination.uri:
        raise DataError(f"{source}: source and destination are the same; pack into another directory")
    origin = open_source(source, kind)
    if not len(origin):
        raise DataError(f"{source}: no images in it; check pack.source")
    return origin


def _finished(storage: Storage, plan: Plan) -> PackReport | None:
    if not storage.exists(FILE):
        return None
    try:
        done = json.loads(storage.read(_DONE))
    except NotFoundError:
        done = {}
    if done.get("fingerprint") != plan.fingerprint:
        raise DataError(f"{storage.uri}: holds another dataset; pack into another place or delete that one first")
    storage.delete_prefix(JOURNAL)  # a run may have been killed between making the dataset and tidying up
    return PackReport(done["samples"], [BadFile(*bad) for bad in done["bad"]], done["hash"])


def _begin(storage: Storage, plan: Plan) -> None:
    """Start, or go on with, this plan; what another plan left unfinished is removed."""
    storage.sweep()
    try:
        same = storage.read(_PLAN).decode() == plan.fingerprint
    except NotFoundError:
        same = True
    if not same:
        for key in list(storage.list(JOURNAL)):
            if key != _PLAN:
                storage.delete(parse_record(storage.read(key)).shard.path)
        storage.delete_prefix(JOURNAL)
    storage.write(_PLAN, plan.fingerprint.encode())


def _make_shards(
    storage: Storage, plan: Plan, max_bad_rate: float, verify: bool, workers: int, progress: Progress
) -> dict[str, list[Packed]]:
    packed: dict[str, list[Packed]] = {name: [] for name in plan.splits}
    bad, done = list(plan.bad), len(plan.bad)
    progress(done, plan.samples)
    with closing(_run(storage, verify, plan.tasks, workers)) as results:
        for task, result in results:
            packed[task.split].append(result)
            bad += result.bad
            done += len(task.items)
            _check_rate(bad, plan.samples, max_bad_rate, storage)
            progress(done, plan.samples)
    return packed


def _run(storage: Storage, verify: bool, tasks: list[Task], workers: int) -> Generator[tuple[Task, Packed]]:
    """Results in the order of the tasks."""
    count = min(workers, len(tasks))
    if count <= 1:
        packer = ShardPacker(storage.uri, verify)
        yield from ((task, packer(task)) for task in tasks)
        return
    children = [Child(ShardPacker, storage.uri, verify) for _ in range(count)]
    try:
        for child, task in zip(children, tasks, strict=False):
            child.send(task)
        for number, task in enumerate(tasks):
            child = children[number % count]
            result: Packed = child.receive()
            if number + count < len(tasks):
                child.send(tasks[number + count])
            yield task, result
    finally:
        for child in children:
            child.close()
        storage.sweep()  # one of them may have been in the middle of a shard


def _check_rate(bad: list[BadFile], samples: int, max_bad_rate: float, storage: Storage) -> None:
    if len(bad) <= max_bad_rate * samples:
        return
    _write_bad(storage, bad)
    first = "; ".join(f"{path} ({reason})" for path, reason in sorted(bad)[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise DataError(
        f"{len(bad)} of {samples} files are unreadable, above maxBadRate {max_bad_rate:g}: {first}{more} "
        f"(list: {storage.uri}/bad.jsonl); remove them or raise pack.maxBadRate"
    )


def _write_bad(storage: Storage, bad: list[BadFile]) -> None:
    lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in sorted(bad)]
    storage.write("bad.jsonl", "".join(lines).encode())


def _finish(
    storage: Storage, plan: Plan, packed: dict[str, list[Packed]], classes: list[str] | None, max_bad_rate: float
) -> PackReport:
    bad = sorted([*plan.bad, *(bad for shards in packed.values() for shard in shards for bad in shard.bad)])
    _check_rate(bad, plan.samples, max_bad_rate, storage)
    splits = {name: _write_index(storage, name, shards, classes) for name, shards in packed.items()}
    if not any(split.samples for split in splits.values()):
        raise DataError(f"{storage.uri}: not one readable image in the source; see bad.jsonl there")
    manifest = Manifest(splits)
    report = PackReport({name: split.samples for name, split in splits.items()}, bad, manifest.hash)
    done = {"fingerprint": plan.fingerprint, "samples": report.samples, "bad": bad, "hash": report.hash}
    _write_bad(storage, bad)
    storage.write(_DONE, json.dumps(done).encode())
    manifest.write(storage)
    storage.delete_prefix(JOURNAL)
    return report


def _write_index(storage: Storage, name: str, shards: list[Packed], classes: list[str] | None) -> SplitInfo:
    rows = [row for shard in shards for row in shard.rows]
    data = encode(rows)
    path = f"{name}/index.parquet"
    storage.write(path, data)
    size = sum(row.length for row in rows)
    digest = hashlib.sha256(data).hexdigest()
    return SplitInfo(
        len(rows), size, size / max(len(rows), 1), path, digest, [shard.shard for shard in shards], classes
    )


def _silent(done: int, total: int) -> None:
    """No progress wanted."""
