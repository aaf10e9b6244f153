"""Packing: a source of images to a dataset of tar shards with an index.

Resumable: every finished shard is recorded, and an interrupted run repeats only what was not. The bytes are the same
whatever the number of workers and of interruptions. ``dataset.json`` is written last: until then there is no dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from dinoctl.data.building import BAD, BadFile, Build, Packed, PackReport, too_many
from dinoctl.data.errors import DataError
from dinoctl.data.manifest import ShardInfo
from dinoctl.data.pack_plan import Plan, make_plan
from dinoctl.data.pack_shard import ShardPacker, Task
from dinoctl.data.parallel import in_order
from dinoctl.data.sources import Source, open_source
from dinoctl.data.storage import Storage, open_storage

__all__ = ["PackReport", "Progress", "pack"]

Progress = Callable[[int, int], None]
"""Called with (candidates dealt with, all candidates)."""


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
    counts = {name: sum(task.split == name for task in plan.tasks) for name in plan.splits}
    build = Build(storage, plan.fingerprint, counts)
    done = build.finished()
    if done is not None:
        return done
    build.begin()
    return _build(build, plan, origin.classes, max_bad_rate, verify, workers, progress or _silent)


def _open(source: str, kind: str, destination: Storage) -> Source:
    if "://" not in source or source.startswith(("file://", "s3://")):
        check_apart(source, open_storage(source), destination)
    origin = open_source(source, kind)
    if not len(origin):
        raise DataError(f"{source}: no images in it; check pack.source")
    return origin


def check_apart(source: str, origin: Storage, destination: Storage) -> None:
    """Refuse places of which one lies in the other: each run would find its own output.

    Raises:
        DataError: they do.
    """
    here, there = _place(origin), _place(destination)
    if here == there:
        raise DataError(f"{source}: source and destination are the same; pack into another directory")
    if there.startswith(here):
        raise DataError(f"{destination.uri}: lies in the source {source}; pack into a place outside of it")
    if here.startswith(there):
        raise DataError(f"{source}: lies in the destination {destination.uri}; pack into a place of its own")


def _place(storage: Storage) -> str:
    path = storage.local_path("")
    return f"{(path.resolve() if path else storage.uri)}/".replace("//", "/")


def _build(
    build: Build,
    plan: Plan,
    classes: list[str] | None,
    max_bad_rate: float,
    verify: bool,
    workers: int,
    progress: Progress,
) -> PackReport:
    bad, done = list(plan.bad), len(plan.bad)
    shards: dict[str, list[ShardInfo]] = {name: [] for name in plan.splits}
    progress(done, plan.samples)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(build.writer()) for name in plan.splits}
        for task, packed in stack.enter_context(closing(_shards(build, plan.tasks, verify, workers))):
            writers[task.split].add(packed.rows)
            shards[task.split].append(packed.shard)
            bad += packed.bad
            done += len(task.items)
            _check_rate(build, bad, plan.samples, max_bad_rate)
            progress(done, plan.samples)
        _check_rate(build, bad, plan.samples, max_bad_rate)
        if len(bad) == plan.samples:
            build.write_bad(bad)
            raise DataError(f"{build.storage.uri}: not one readable image in the source; see {BAD} there")
        made = {name: build.write_index(name, writer) for name, writer in writers.items()}
    splits = {name: build.info(name, made[name], shards[name], classes) for name in plan.splits}
    return build.finish(splits, bad)


def _shards(build: Build, tasks: list[Task], verify: bool, workers: int) -> Generator[tuple[Task, Packed]]:
    try:
        with closing(in_order(ShardPacker, (build.storage.uri, verify), tasks, workers)) as results:
            yield from results
    finally:
        build.sweep()  # one of them may have been in the middle of a shard


def _check_rate(build: Build, bad: list[BadFile], samples: int, max_bad_rate: float) -> None:
    if len(bad) <= max_bad_rate * samples:
        return
    build.write_bad(bad)
    what = too_many(bad, f"{samples} files", f"maxBadRate {max_bad_rate:g}", build.storage.uri)
    raise DataError(f"{what}; remove them or raise pack.maxBadRate (--max-bad-rate)")


def _silent(done: int, total: int) -> None:
    """No progress wanted."""
